"""Our server with other people's clients, and our client with other people's servers."""

import json
import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from testbed.nbd.block_size import BlockSize
from testbed.nbd.client import export_information, list_exports, open_connection
from testbed.nbd.errors import NbdError
from testbed.nbd.export import FileExport, MemoryExport
from testbed.nbd.programs import server_command
from tests.nbd.conftest import StartProgram, StartServer
from tests.nbd.support import eventually
from tests.nbd.test_client import PAGE, complete, pages
from tests.nbd.test_serve import StartServe, ready

Memory = tuple[MemoryExport, Path]
SYSTEM_PYTHON = "/usr/bin/python3"  # Debian's python3-libnbd is for it alone


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
    abilities = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    expected = {"export-size": 8 << 20, "is_read_only": False, "contexts": ["base:allocation"]}
    sizes = {"block_size_minimum": 1, "block_size_preferred": 4096, "block_size_maximum": 32 << 20}
    assert told | expected | sizes | {f"can_{ability}": True for ability in abilities} == told
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


@pytest.mark.program("nbdinfo")
def test_nbdinfo_sees_the_holes_of_a_file(start_server: StartServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(256 << 10)
        file.write(b"x" * (64 << 10))
    _, path = start_server({"swap": FileExport(disk)})
    extents = json.loads(run("nbdinfo", "--json", "--map", uri(path)))
    assert [(one["length"], one["type"]) for one in extents] == [(256 << 10, 3), (64 << 10, 0), (704 << 10, 3)]


@pytest.mark.program("nbdcopy")
@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_keeps_a_sparse_file_sparse(start_server: StartServer, tmp_path: Path, connections: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for path in (source, target):
        path.touch()
        os.truncate(path, 64 << 20)
    with source.open("r+b") as file:
        for at in range(0, 64, 8):
            file.seek(at << 20)
            file.write(random.Random(at).randbytes(100_000))
    _, where = start_server({"source": FileExport(source, read_only=True), "target": FileExport(target)})
    run("nbdcopy", f"--connections={connections}", uri(where, "source"), uri(where, "target"))
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks * 512 < 4 << 20


@pytest.mark.program("qemu-io")
def test_qemu_io_zeroes(memory_server: Memory) -> None:
    export, path = memory_server
    export.write(0, b"x" * export.size)
    told = run(
        *("qemu-io", "-f", "raw", "-t", "none", "-c", "write -z 4k 8k", "-c", "write -z -u -f 64k 1M", "-c", "map"),
        uri(path),
    )
    assert "8 MiB (0x800000) bytes" in told
    for start, end in ((4 << 10, 12 << 10), (64 << 10, 1088 << 10)):
        assert bytes(export.memory[start - 1 : start + 1]) == b"x\0"
        assert bytes(export.memory[end - 1 : end + 1]) == b"\0x"


@pytest.mark.program("qemu-io")
def test_qemu_io_on_a_read_only_export(start_server: StartServer) -> None:
    _, path = start_server({"swap": MemoryExport(1 << 20, read_only=True)})
    assert "verification failed" not in run("qemu-io", "-r", "-f", "raw", "-c", "read -P 0 0 1M", uri(path))
    refused = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 4k", uri(path)], capture_output=True, check=False)
    assert b"Permission denied" in refused.stderr


@pytest.mark.program("qemu-io")
def test_qemu_keeps_to_the_block_sizes(start_server: StartServer) -> None:
    """Requests that do not fit are made of ones that do: the server would refuse others."""
    export = MemoryExport(1 << 20, block_size=BlockSize(4096, 4096, 64 << 10))
    server, path = start_server({"swap": export})
    run("qemu-io", "-f", "raw", "-t", "none", "-c", "write -P 7 512 1000", "-c", "write -P 8 64k 512k", uri(path))
    assert bytes(export.memory[511:1513]) == b"\0" + b"\7" * 1000 + b"\0"
    assert server.statistics().errors == 0


@pytest.mark.program("fio")
def test_fio_with_several_jobs(memory_server: Memory) -> None:
    jobs = ("--numjobs=4", "--size=2m", "--offset_increment=2m", "--rw=randrw", "--bs=4k", "--iodepth=8")
    check = ("--verify=crc32c", "--verify_state_save=0")
    run("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri(memory_server[1])}", *jobs, *check)


def libnbd_table(*arguments: str | Path) -> dict[str, str]:
    """What libnbd, strict mode off, made of each operation."""
    if subprocess.run([SYSTEM_PYTHON, "-c", "import nbd"], capture_output=True, check=False).returncode:
        pytest.skip(f"{SYSTEM_PYTHON} has no nbd module: apt install python3-libnbd")
    told = run(SYSTEM_PYTHON, Path(__file__).with_name("libnbd_table.py"), *arguments)
    return dict(line.split(": ", 1) for line in told.splitlines())


ANYWHERE = {
    **dict.fromkeys(("structured", "multi_conn", "df", "fast_zero", "cache", "read", "zeroed", "still alive"), "True"),
    **{"size": str(8 << 20), "minimum": "1", "whole": "[(0, 12288, 1)]"},
    **dict.fromkeys(("read beyond", "trim beyond", "cache beyond", "unknown flag"), "EINVAL"),
    **dict.fromkeys(("write beyond", "zero beyond"), "ENOSPC"),
}


@pytest.mark.program(SYSTEM_PYTHON)
def test_libnbd_with_memory(memory_server: Memory) -> None:
    told = libnbd_table(uri(memory_server[1]))
    chunks = "[(0, 4096, 2), (4096, 4096, 1), (8192, 4096, 2)]"
    extents = "[('base:allocation', 0, [4096, 2, 4096, 0, 8192, 2])]"
    assert told == ANYWHERE | {"tls": "False", "chunks": chunks, "extents": extents, "one": "[[4096, 2]]"}


@pytest.mark.program(SYSTEM_PYTHON)
def test_libnbd_with_a_file(start_server: StartServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 8 << 20)
    _, path = start_server({"swap": FileExport(disk)})
    told = libnbd_table(uri(path))
    assert {name: told[name] for name in ANYWHERE} == ANYWHERE


@pytest.mark.program(SYSTEM_PYTHON)
@pytest.mark.program("openssl")
@pytest.mark.parametrize("verify", [[], ["--tls-verify-peer"]])
@pytest.mark.parametrize("mode", ["required", "allowed"])
def test_libnbd_over_tls(start_serve: StartServe, certificates: Path, mode: str, verify: list[str]) -> None:
    where = ("--listen", "127.0.0.1:0", "--size", "8M")
    process = start_serve(*where, "--tls-certificates", str(certificates), "--tls", mode, *verify)
    address = ready(process).replace("nbd://", "nbds://")
    told = libnbd_table(address, certificates)
    assert {name: told[name] for name in ANYWHERE} == ANYWHERE
    assert told["tls"] == "True"
    assert process.stderr is not None
    assert "TLS is done in user space" in process.stderr.readline()


@pytest.mark.program("nbdinfo")
@pytest.mark.program("openssl")
def test_who_is_kept_out_by_tls(start_serve: StartServe, certificates: Path, tmp_path: Path) -> None:
    where = ("--listen", "127.0.0.1:0", "--size", "8M")
    process = start_serve(*where, "--tls-certificates", str(certificates), "--tls-verify-peer")
    secure = ready(process)
    plain = secure.replace("nbds://", "nbd://")
    anonymous = tmp_path / "anonymous"
    anonymous.mkdir()
    shutil.copy(certificates / "ca-cert.pem", anonymous)
    for address in (plain, f"{secure}?tls-certificates={anonymous}"):
        refused = subprocess.run(["nbdinfo", "--size", address], capture_output=True, check=False, timeout=60)
        assert refused.returncode != 0
    assert run("nbdinfo", "--size", f"{secure}?tls-certificates={certificates}") == f"{8 << 20}\n"


@pytest.mark.program("qemu-img")
@pytest.mark.program("openssl")
def test_qemu_over_tls(start_serve: StartServe, certificates: Path) -> None:
    process = start_serve("--listen", "127.0.0.1:0", "--size", "8M", "--tls-certificates", str(certificates))
    port = ready(process).rsplit(":", 1)[1].rstrip("/")
    credentials = f"tls-creds-x509,id=tls0,endpoint=client,dir={certificates}"
    image = f"driver=nbd,host=127.0.0.1,port={port},tls-creds=tls0"
    told = run("qemu-img", "info", "--object", credentials, "--image-opts", image)
    assert "8 MiB" in told


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
