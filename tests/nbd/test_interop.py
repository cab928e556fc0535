"""Our server with other people's clients, and our client with other people's servers."""

import json
import random
import socket
import subprocess
from pathlib import Path

import pytest

from testbed.nbd.client import export_information, list_exports, open_connection
from testbed.nbd.errors import NbdError
from testbed.nbd.export import FileExport, MemoryExport
from testbed.nbd.programs import server_command
from tests.nbd.conftest import StartProgram, StartServer
from tests.nbd.support import eventually
from tests.nbd.test_client import PAGE, complete, pages
from tests.nbd.test_serve import StartServe, ready

Memory = tuple[MemoryExport, Path]


def run(*argv: str | Path) -> str:
    """Its output; fails with its complaint."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{argv[0]} failed: {done.stdout} {done.stderr}"
    return done.stdout


def uri(path: Path, name: str = "swap") -> str:
    return f"nbd+unix:///{name}?socket={path}"


@pytest.mark.program("nbdinfo")
def test_nbdinfo(start_server: StartServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    file = FileExport(disk, read_only=True)
    _, path = start_server({"swap": MemoryExport(8 << 20), "disk": file})
    (told,) = json.loads(run("nbdinfo", "--json", uri(path)))["exports"]
    expected = {"export-size": 8 << 20, "can_flush": True, "can_fua": True, "can_trim": True, "can_multi_conn": True}
    assert told | expected | {"is_read_only": False, "block_size_maximum": 32 << 20} == told
    listed = json.loads(run("nbdinfo", "--json", "--list", uri(path, "")))["exports"]
    names = {one["export-name"]: (one["export-size"], one["is_read_only"]) for one in listed}
    assert names == {"swap": (8 << 20, False), "disk": (1 << 20, True)}
    refused = subprocess.run(["nbdinfo", uri(path, "nothing")], capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "No such file or directory for export: nothing" in refused.stderr


@pytest.mark.program("nbdcopy")
def test_nbdcopy_both_ways(memory_server: Memory, tmp_path: Path) -> None:
    export, path = memory_server
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(random.Random(7).randbytes(export.size))
    run("nbdcopy", there, uri(path))
    assert export.memory == there.read_bytes()
    run("nbdcopy", uri(path), back)
    assert back.read_bytes() == there.read_bytes()


@pytest.mark.program("qemu-io")
def test_qemu_io(memory_server: Memory) -> None:
    export, path = memory_server
    told = run(
        *("qemu-io", "-f", "raw", "-t", "none"),
        *("-c", "write -P 0x5a 512 1M", "-c", "write -f -P 0x33 4M 4k", "-c", "read -P 0x5a 512 1M"),
        *("-c", "discard 4M 4k", "-c", "read -P 0 4M 4k", "-c", "flush"),
        uri(path),
    )
    assert "verification failed" not in told
    assert bytes(export.memory[511:513]) == b"\x00\x5a"
    assert not any(export.memory[4 << 20 :])


@pytest.mark.program("qemu-img")
def test_qemu_img(memory_server: Memory, tmp_path: Path) -> None:
    export, path = memory_server
    image, copy = tmp_path / "image", tmp_path / "copy"
    image.write_bytes(random.Random(8).randbytes(1 << 20) + bytes((8 << 20) - (1 << 20)))
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri(path))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri(path))
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri(path), copy)
    assert copy.read_bytes() == image.read_bytes() == bytes(export.memory)


@pytest.mark.program("fio")
@pytest.mark.parametrize("block", ["4k", "128k", "512-64k"])
def test_fio_verifies(memory_server: Memory, block: str) -> None:
    if "nbd" not in run("fio", "--enghelp").split():
        pytest.skip("this fio has no nbd engine")
    sizes = f"--bsrange={block}" if "-" in block else f"--bs={block}"
    run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri(memory_server[1])}", "--size=8m", sizes),
        *("--rw=randwrite", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=1"),
        *("--trim_percentage=10", "--verify_state_save=0"),
    )


@pytest.mark.program("nbd-client")
def test_nbd_client_lists(start_serve: StartServe, free_port: int) -> None:
    process = start_serve("--listen", f"127.0.0.1:{free_port}", "--export", "swap")
    ready(process)
    assert "swap" in run("nbd-client", "-l", "127.0.0.1", str(free_port))


@pytest.mark.root
@pytest.mark.program("nbd-client")
@pytest.mark.skipif(not Path("/dev/nbd0").exists(), reason="the kernel has no NBD client here: /dev/nbd0 is missing")
def test_the_kernel(memory_server: Memory) -> None:
    export, path = memory_server
    run("nbd-client", "-unix", path, "/dev/nbd0", "-name", "swap")
    try:
        run("mkswap", "/dev/nbd0")
        eventually(lambda: bytes(export.memory[4086:4096]) == b"SWAPSPACE2")
    finally:
        run("nbd-client", "-d", "/dev/nbd0")


SERVERS = [pytest.param(name, marks=pytest.mark.program(name)) for name in ("nbdkit", "nbd-server", "qemu-nbd")]


@pytest.mark.parametrize("program", SERVERS)
def test_our_client(program: str, start_program: StartProgram, free_port: int, tmp_path: Path) -> None:
    size = 4 << 20
    command = server_command(program, address="127.0.0.1", port=free_port, size=size, directory=tmp_path)
    start_program(command, free_port)
    where = ("127.0.0.1", free_port)

    with socket.create_connection(where) as sock:
        assert command.export_name in [export.name for export in list_exports(sock)]
    if program != "nbd-server":  # 3.24 tells the size only with NBD_OPT_GO, and 0 with NBD_OPT_INFO
        with socket.create_connection(where) as sock:
            assert export_information(sock, command.export_name).size == size

    chance = random.Random(9)
    model = [chance.randbytes(PAGE) for _ in range(size // PAGE)]
    with socket.create_connection(where) as sock:
        client = open_connection(sock, command.export_name)
        assert client.export_size == size
        for at in range(0, len(model), 16):
            client.write(at, at * PAGE, pages(*model[at : at + 16]))
        assert sorted(complete(client, len(model) // 16)) == [(at, 0) for at in range(0, len(model), 16)]
        client.flush(1)
        client.trim(2, 0, PAGE)
        assert sorted(complete(client, 2)) == [(1, 0), (2, 0)]
        landings = {}
        for handle in range(256):
            at, count = chance.randrange(1, len(model) - 32), chance.choice([1, 8, 32])
            landings[handle] = (at, pages(*[b""] * count))
            client.read(handle, at * PAGE, landings[handle][1])
        assert sorted(complete(client, 256)) == [(handle, 0) for handle in range(256)]
        for at, landing in landings.values():
            assert [bytes(page) for page in landing] == model[at : at + len(landing)]
        client.disconnect()
        assert client.send_pending()


@pytest.mark.program("qemu-nbd")
def test_our_client_is_refused(start_program: StartProgram, free_port: int, tmp_path: Path) -> None:
    command = server_command("qemu-nbd", address="127.0.0.1", port=free_port, size=1 << 20, directory=tmp_path)
    start_program(command, free_port)
    with (
        socket.create_connection(("127.0.0.1", free_port)) as sock,
        pytest.raises(NbdError, match="has no export 'nothing'"),
    ):
        open_connection(sock, "nothing")


@pytest.mark.program("nbdkit")
@pytest.mark.parametrize("mask", ["0", "1", "2"])
def test_our_client_with_an_old_server(mask: str, tmp_path: Path) -> None:
    """nbdkit without the fixed newstyle handshake, without NBD_FLAG_NO_ZEROES, or without both."""
    path = tmp_path / "nbdkit.sock"
    argv = ["nbdkit", "--foreground", f"--unix={path}", f"--mask-handshake={mask}", "memory", "1M"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            eventually(lambda: sock.connect_ex(str(path)) == 0)
            client = open_connection(sock)
            landing = pages(b"")
            client.read(1, 0, landing)
            assert complete(client, 1) == [(1, 0)]
            assert not any(landing[0])
    finally:
        process.kill()
        process.wait()
