"""How User Mode Linux is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.hosts.kernel.uml import READ_FILE, Machine, command_line, memory_directory, root_directory
from testbed.lab.errors import LabError

MACHINE = Machine(Path("/k/linux"), ("testbed.sock_memalloc=0",), 128 << 20, "wire0", "02:00:0a:00:00:02", 9000, 128)


def test_the_command_line_has_memory_root_consoles_network_and_parameters() -> None:
    words = command_line(MACHINE, Path("/d"), console=5, control=7)
    assert words[0] == "/k/linux"
    assert {"mem=131072k", "rootfstype=hostfs", "rootflags=/d/root", "con0=fd:5,fd:5", "con1=fd:7,fd:7"} <= set(words)
    assert "vec0:transport=raw,ifname=wire0,depth=128,mac=02:00:0a:00:00:02,mtu=9000,gro=0,vec=1" in words
    assert {"uml_dir=/d/", "umid=guest"} <= set(words)
    assert words[-1] == "testbed.sock_memalloc=0"


def test_the_root_directory_has_an_init_its_modules_a_file_to_read_and_mount_points(tmp_path: Path) -> None:
    program, module = tmp_path / "program", tmp_path / "nbd.ko"
    program.write_text("x")
    module.write_text("y")
    root = root_directory(tmp_path, program, [module], read=8 << 20)
    assert sorted(each.name for each in root.iterdir()) == ["dev", "init", "nbd.ko", "page_cache", "proc", "sys"]
    assert (root / READ_FILE).stat().st_size == 8 << 20


def test_no_room_for_the_guests_memory_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.statvfs_result((4096, 4096, 10, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(LabError, match="needs 160 MiB in /dev/shm"):
        memory_directory(128 << 20)
