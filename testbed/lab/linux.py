"""The few system calls Python 3.11 does not wrap, by ctypes: unshare, setns, prctl(PR_SET_PDEATHSIG), personality.

All of them act on the calling thread, not on the process.
"""

from __future__ import annotations

import ctypes
import os
import signal

from testbed.lab.errors import lab_error

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
ADDR_NO_RANDOMIZE = 0x0040000

libc = ctypes.CDLL(None, use_errno=True)


def unshare_network() -> None:
    """Put the calling thread into a new, empty network namespace (unshare(2)). Raises LabError."""
    if libc.unshare(ctypes.c_int(CLONE_NEWNET)):
        raise lab_error("making a network namespace", ctypes.get_errno())


def enter_network(fd: int) -> None:
    """Move the calling thread into the network namespace that `fd` refers to (setns(2)). Raises LabError."""
    if libc.setns(ctypes.c_int(fd), ctypes.c_int(CLONE_NEWNET)):
        raise lab_error("entering a network namespace", ctypes.get_errno())


def open_current_network() -> int:
    """A descriptor (close-on-exec) that holds the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that forked it ends (PR_SET_PDEATHSIG, prctl(2)).

    `parent` is the pid of the process that forked; if it has already gone, this one goes at once.
    """
    libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def keep_addresses() -> None:
    """Have what this process executes laid out in memory alike every time (personality(2))."""
    libc.personality(ctypes.c_ulong(ADDR_NO_RANDOMIZE))
