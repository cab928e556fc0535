"""User Mode Linux as a process of ours: a kernel image, its root directory, its console and its control line.

Its addresses are not randomized: the gap that this leaves behind the program would count as memory of the guest, and
its tables would be made for hundreds of megabytes that are not there. The console and the control line are socket
pairs, whose other ends belong to whoever started it. A guest's processes are processes here, too, and outlive their
kernel when that is killed: it gets a pid namespace of its own, with which all of them end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.hosts.kernel.proc_text import USER_HZ
from testbed.hosts.server_program import OWN_PIDS
from testbed.lab.errors import LabError
from testbed.lab.linux import die_with_parent, keep_addresses

NAME = "guest"
INTERFACE = "vec0"
READ_FILE = "page_cache"
PACKET_HEADROOM = 32 << 20
"""Bytes beyond the guest's memory that its temporary file system should have room for."""
_MOUNT_POINTS = ("dev", "proc", "sys")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a guest is made of: its image, its boot parameters, `memory` in bytes, and the interface of this namespace
    that its own, with address `mac`, packets of up to `mtu` bytes and a vector of `depth` frames, receives from."""

    image: Path
    parameters: tuple[str, ...]
    memory: int
    interface: str
    mac: str
    mtu: int
    depth: int


def root_directory(directory: Path, program: Path, modules: Sequence[Path] = (), *, read: int = 0) -> Path:
    """A root file system for the guest: its init, the modules it is to load, a file of `read` bytes (`READ_FILE`) for
    its page cache, and where to mount the rest."""
    root = directory / "root"
    for name in _MOUNT_POINTS:
        (root / name).mkdir(parents=True)
    shutil.copy2(program, root / "init")
    for module in modules:
        shutil.copy2(module, root / module.name)
    with (root / READ_FILE).open("wb") as file:
        file.truncate(read)
    return root


def command_line(machine: Machine, directory: Path, console: int, control: int) -> list[str]:
    """The words that start it; `console` and `control` are descriptors."""
    vector = (
        f"transport=raw,ifname={machine.interface},depth={machine.depth},mac={machine.mac},mtu={machine.mtu},gro=0,vec=1"
    )
    return [
        str(machine.image),
        f"mem={machine.memory >> 10}k",
        "rootfstype=hostfs",
        f"rootflags={directory / 'root'}",
        "rw",
        "init=/init",
        "con=null",
        f"con0=fd:{console},fd:{console}",
        f"con1=fd:{control},fd:{control}",
        f"vec0:{vector}",
        f"uml_dir={directory}/",
        f"umid={NAME}",
        "panic=-1",
        *machine.parameters,
    ]


class UserModeLinux:
    """A running guest. Raises LabError when it cannot be started."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.directory = directory
        self._pid: int | None = None
        self.console, console = socket.socketpair()
        self.control, control = socket.socketpair()
        parent = os.getpid()

        def in_child() -> None:
            die_with_parent(parent)
            keep_addresses()

        try:
            self._process = subprocess.Popen(
                [*OWN_PIDS, *command_line(machine, directory, console.fileno(), control.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=console.fileno(),
                stderr=console.fileno(),
                env={"TMPDIR": str(memory_directory(machine.memory)), "HOME": str(directory), "PATH": os.defpath}
                | {name: value for name, value in os.environ.items() if name.startswith("TESTBED_")},
                cwd=directory,
                pass_fds=(console.fileno(), control.fileno()),
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - two system calls
            )
        except OSError as error:
            raise LabError(f"cannot start {machine.image}: {error.strerror or error}") from error
        finally:
            console.close()
            control.close()

    @property
    def pid(self) -> int:
        """Its process id, as seen from here. Raises LabError when it has ended."""
        if self._pid is None:
            starter = self._process.pid
            try:
                self._pid = int(Path(f"/proc/{starter}/task/{starter}/children").read_text().split()[0])
            except (OSError, IndexError):
                raise LabError("User Mode Linux has ended (see the console log)") from None
        return self._pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def management(self) -> Path:
        """The socket of its management console."""
        return self.directory / NAME / "mconsole"

    def cpu_seconds(self) -> float:
        """CPU time of its kernel so far, seconds; 0 when it has ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, LabError):
            return 0.0
        return (int(fields[11]) + int(fields[12])) / USER_HZ

    def wait(self, seconds: float) -> bool:
        """Whether it ends by itself within that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.alive

    def kill(self) -> None:
        """End it and all its helpers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def memory_directory(memory: int) -> Path:
    """Where the guest's memory can be a file: with room for it, and from where code may run. Raises LabError."""
    for path in (Path("/dev/shm"), Path(tempfile.gettempdir())):
        try:
            there = os.statvfs(path)
        except OSError:
            continue
        if there.f_bavail * there.f_frsize >= memory + PACKET_HEADROOM and not there.f_flag & os.ST_NOEXEC:
            return path
    raise LabError(
        f"a kernel host needs {(memory + PACKET_HEADROOM) >> 20} MiB in /dev/shm or {tempfile.gettempdir()}, mounted "
        "without noexec: enlarge one of them (docker run --shm-size), or set TMPDIR"
    )
