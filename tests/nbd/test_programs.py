"""Command lines of third-party servers; that they work is for test_interop.py."""

from pathlib import Path

import pytest

from testbed.nbd.programs import PROGRAMS, PreparedFile, ServerCommand, server_command


def command(program: str, directory: Path, size: int = 1 << 20) -> ServerCommand:
    return server_command(program, address="192.0.2.1", port=12345, size=size, directory=directory)


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program: f"/opt/bin/{program}")


@pytest.mark.usefixtures("all_installed")
@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_nothing_is_forgotten(program: str, tmp_path: Path) -> None:
    made = command(program, tmp_path)
    assert f"/opt/bin/{program}" in made.argv
    text = "\n".join([*made.argv, *(file.contents for file in made.files)])
    for needed in ("192.0.2.1", "12345"):
        assert needed in text
    assert "1048576" in made.argv or any(file.size == 1 << 20 for file in made.files)
    assert not list(tmp_path.iterdir())
    assert all(file.path.parent == tmp_path for file in made.files)


def test_an_unknown_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown NBD server 'nbdd': choose from nbd-server, nbdkit, qemu-nbd"):
        command("nbdd", tmp_path)


def test_a_program_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="the NBD server nbdkit is not installed"):
        command("nbdkit", tmp_path)


def test_a_size_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="positive size"):
        command("nbdkit", tmp_path, 0)


def test_files_are_prepared(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"old")
    PreparedFile(path, size=1 << 40).write()
    assert path.stat().st_size == 1 << 40
    assert path.stat().st_blocks == 0
    PreparedFile(path, "[generic]\n").write()
    assert path.read_text() == "[generic]\n"
