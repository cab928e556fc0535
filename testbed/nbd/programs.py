"""How to run other people's NBD servers beside ours: pure command lines, nothing is started here.

All of them stay in the foreground, so that whoever starts one holds its process id, and end on SIGTERM. nbdkit first
waits for its clients, for ever if one has vanished with its network, so follow up with SIGKILL after `grace`.

nbd-server needs a shell around it: in the foreground (-d) it serves one client after the other and dies of the first
that leaves without a word. So it detaches, and the shell lives as long as it does and passes SIGTERM on.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

NBD_SERVER_SCRIPT = """
"$1" -C "$2" -p "$3" || exit
exec 2> /dev/null
until [ -s "$3" ]; do sleep 0.01; done
read -r server < "$3"
trap 'kill "$server"' TERM INT
tail --pid="$server" -f /dev/null &
wait $!
while kill -0 "$server"; do sleep 0.01; done
kill $!
"""


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A file that has to exist before the server starts: these contents, then zeroes (a hole) up to `size` bytes."""

    path: Path
    contents: str = ""
    size: int = 0

    def write(self) -> None:
        """Make the file, replacing one that exists. Raises OSError."""
        self.path.write_text(self.contents)
        if self.size:
            with self.path.open("r+b") as file:
                file.truncate(self.size)


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """`export_name` is what to ask the server for; `grace` is in seconds."""

    argv: tuple[str, ...]
    files: tuple[PreparedFile, ...]
    export_name: str
    grace: float = 2.0


def server_command(program: str, *, address: str, port: int, size: int, directory: Path) -> ServerCommand:
    """Serve `size` bytes on a numeric `address`; `directory` is absolute and takes the files that the server needs.

    Raises ValueError, in one clear line, for a program that is unknown or not installed, and for a size that is not
    positive.
    """
    if program not in PROGRAMS:
        raise ValueError(f"unknown NBD server {program!r}: choose from {', '.join(sorted(PROGRAMS))}")
    if size <= 0:
        raise ValueError(f"an export needs a positive size, not {size}")
    path = shutil.which(program)
    if path is None:
        raise ValueError(f"the NBD server {program} is not installed")
    return PROGRAMS[program](path, address, port, size, directory)


def _nbdkit(path: str, address: str, port: int, size: int, directory: Path) -> ServerCommand:
    argv = (path, "--foreground", f"--ipaddr={address}", f"--port={port}", "memory", str(size))
    return ServerCommand(argv, (), "")


def _nbd_server(path: str, address: str, port: int, size: int, directory: Path) -> ServerCommand:
    disk = PreparedFile(directory / "nbd-server.img", size=size)
    generic = f"[generic]\nlistenaddr = {address}\nport = {port}\nallowlist = true\n"
    config = PreparedFile(directory / "nbd-server.conf", f"{generic}[swap]\nexportname = {disk.path}\ntrim = true\n")
    pid_file = PreparedFile(directory / "nbd-server.pid")
    argv = ("/bin/sh", "-c", NBD_SERVER_SCRIPT, "sh", path, str(config.path), str(pid_file.path))
    return ServerCommand(argv, (disk, config, pid_file), "swap")


def _qemu_nbd(path: str, address: str, port: int, size: int, directory: Path) -> ServerCommand:
    disk = PreparedFile(directory / "qemu-nbd.img", size=size)
    where = (f"--bind={address}", f"--port={port}", "--export-name=swap", "--discard=unmap")
    return ServerCommand(
        (path, "--persistent", "--shared=0", "--format=raw", *where, str(disk.path)), (disk,), "swap"
    )


PROGRAMS: dict[str, Callable[[str, str, int, int, Path], ServerCommand]] = {
    "nbdkit": _nbdkit,
    "nbd-server": _nbd_server,
    "qemu-nbd": _qemu_nbd,
}
