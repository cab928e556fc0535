"""What a run that was killed can leave behind, and how to be rid of it.

Namespaces are anonymous, processes ask the kernel to die with their parent, and a temporary directory has a shell that
removes it when its owner is gone, so that normally nothing is left. If that shell was killed, too, a directory can be;
and so can a helper that a third-party server started by itself. Directories carry their owner in their name, programs
carry it in their environment (`TESTBED_RUN`), and an owner is a process id with that process's start time, so that a
reused id is nobody's owner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "TESTBED_RUN"
PREFIX = "testbed-"
PROC = Path("/proc")
_REMOVE_AT_EOF = """
read -r line && exit
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    rm -rf -- "$1" && exit
    sleep 0.1
done
"""
"""Of standard input, which ends when its owner and all that it forked are gone; what dies with them may still write
into the directory. A line says that there is nothing to be done."""


def owner_mark(pid: int | None = None, proc: Path = PROC) -> str:
    """A name for a running process that no later process will have: "PID-STARTTIME". Raises ProcessLookupError."""
    pid = os.getpid() if pid is None else pid
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise ProcessLookupError(pid) from None
    return f"{pid}-{fields[19]}"


def mark_children() -> None:
    """Have every program started from now on carry this process's mark."""
    os.environ[VARIABLE] = owner_mark()


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory for sockets and the like, gone at the end, whatever end that is."""
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner_mark()}-"))
    try:
        with _removed_after_us(path):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _removed_after_us(path: Path) -> Iterator[None]:
    """In a session of its own, so that Ctrl-C, which is meant for us, does not end it before us."""
    command = ["sh", "-c", _REMOVE_AT_EOF, "sh", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True) as shell:
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                shell.communicate(b"\n")


def clean(temporary: Path | None = None, proc: Path = PROC) -> list[str]:
    """Remove what runs that are gone have left; one line for each thing removed or out of reach."""
    done = [
        f"ended process {pid} ({name})" if ended else f"process {pid} ({name}) is left: run it with sudo"
        for pid, name, ended in _end_orphans(proc)
    ]
    for path in sorted((temporary or Path(tempfile.gettempdir())).glob(f"{PREFIX}*-*-*")):
        if path.is_symlink() or not path.is_dir() or _alive("-".join(path.name.split("-")[1:3]), proc):
            continue
        shutil.rmtree(path, ignore_errors=True)
        done.append(f"{path} is left: run it with sudo" if path.exists() else f"removed {path}")
    return done


def _end_orphans(proc: Path) -> Iterator[tuple[int, str, bool]]:
    for directory in proc.glob("[0-9]*"):
        pid = int(directory.name)
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            name = (directory / "comm").read_text().strip()
        except OSError:
            continue
        marks = [
            entry.partition(b"=")[2].decode() for entry in environment if entry.startswith(f"{VARIABLE}=".encode())
        ]
        if not marks or pid == os.getpid() or _alive(marks[0], proc):
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            yield pid, name, False
        else:
            yield pid, name, True


def _alive(mark: str, proc: Path) -> bool:
    pid, _, _ = mark.partition("-")
    try:
        return pid.isdigit() and owner_mark(int(pid), proc) == mark
    except ProcessLookupError:
        return False
