"""What a test, or an experiment, may need of the machine, and what is missing when it is not there.

A capability has a name; whoever asks is told None, or in a few words what is missing and how to get it. Any installed
program is a capability as well: those listed here by their own names, others as "program:NAME".
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from testbed.experiment import preflight
from testbed.experiment.errors import CannotRun
from testbed.experiment.plan import resolve
from testbed.experiment.topology import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.hosts.kernel.catalogue import images
from testbed.hosts.plan import SlabAllocator
from testbed.lab.errors import LabError

CLONE_NEWNET = 0x40000000
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
PROGRAM = "program:"
PACKAGES = {
    **preflight.PACKAGES,
    "nbd-client": "nbd-client",
    "nbdinfo": "libnbd-bin",
    "nbdcopy": "libnbd-bin",
    "qemu-io": "qemu-utils",
    "qemu-img": "qemu-utils",
    "fio": "fio",
    "tshark": "tshark",
    "capinfos": "wireshark-common",
}
"""Programs that go by their own names, and the packages that have them."""


class UnknownCapability(ValueError):
    """There is no capability of this name; the message is one line."""


def missing(name: str) -> str | None:
    """What is missing for a capability; None if nothing is. Raises UnknownCapability."""
    check_name(name)
    if (find := CAPABILITIES.get(name)) is not None:
        return find()
    program = name.removeprefix(PROGRAM)
    if shutil.which(program, path=SEARCH_PATH) is not None:
        return None
    return f"{program} is not installed" + (f": apt install {PACKAGES[program]}" if program in PACKAGES else "")


def check_name(name: str) -> None:
    """Raises UnknownCapability."""
    if name not in CAPABILITIES and name not in PACKAGES and not (name.startswith(PROGRAM) and name != PROGRAM):
        known = ", ".join([*CAPABILITIES, *PACKAGES])
        raise UnknownCapability(f"unknown capability {name!r}: there are {known} and {PROGRAM}NAME")


@functools.cache
def _root() -> str | None:
    """The privilege to make network namespaces, tried out in a child: a container may forbid what the bits allow."""
    try:
        preflight.require_privilege()
    except CannotRun as error:
        return str(error)
    libc = ctypes.CDLL(None, use_errno=True)
    child = os.fork()
    if child == 0:
        os._exit(0 if libc.unshare(CLONE_NEWNET) == 0 else 1)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        return "no network namespace can be made here: run it with sudo, outside a restricted container"
    return None


@functools.cache
def _netem() -> str | None:
    """The kernel's own delay and loss (sch_netem), tried out on the loopback of a namespace."""
    if (reason := _root()) is not None:
        return reason
    from pyroute2 import NetlinkError

    from testbed.lab.builder import Lab

    try:
        with Lab() as lab:
            lab.namespace().netlink.tc("add", "netem", index=1, handle="1:", delay=1000)
    except (LabError, NetlinkError, OSError) as error:
        return f"this kernel has no netem ({error}): modprobe sch_netem"
    return None


def _nbd_device() -> str | None:
    return None if Path("/dev/nbd0").exists() else "there is no /dev/nbd0: modprobe nbd"


def _ipv6() -> str | None:
    return None if Path("/proc/net/if_inet6").exists() else "this kernel has no IPv6"


@functools.cache
def _kernel_host() -> str | None:
    """What `testbed run --host kernel` would be refused for."""
    topology = Topology("kernel_host")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", swap=server, host="kernel"))
    topology.connect(server, client, topology.add(Neighbour("neighbour")))
    topology.workload(client, LinearTouch())
    try:
        preflight.check(resolve(topology))
    except (CannotRun, LabError) as error:
        return str(error)
    return None


@functools.cache
def _built_kernel(slab: SlabAllocator) -> str | None:
    if any(image.built and image.slab == slab for image in images()):
        return None
    return f"no kernel with {slab.upper()} has been built: testbed kernel build --slab {slab}"


CAPABILITIES: dict[str, Callable[[], str | None]] = {
    "root": _root,
    "netem": _netem,
    "nbd-device": _nbd_device,
    "ipv6": _ipv6,
    "kernel-host": _kernel_host,
    "kernel-slub": lambda: _built_kernel("slub"),
    "kernel-slab": lambda: _built_kernel("slab"),
}
"""What there is besides programs, by name: each tells what is missing."""
