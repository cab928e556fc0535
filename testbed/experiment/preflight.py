"""What must be true before anything is built: privilege, installed programs, enough real memory."""

from __future__ import annotations

import shutil
from pathlib import Path

from testbed.experiment.errors import CannotRun
from testbed.experiment.plan import Plan
from testbed.lab.errors import LabError
from testbed.size import format_size

CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}
PACKAGES = {"nbdkit": "nbdkit", "nbd-server": "nbd-server", "qemu-nbd": "qemu-utils"}
OVERHEAD = 256 << 20
"""Bytes of real memory that the processes of a run need for themselves."""


def check(plan: Plan) -> None:
    """Raises CannotRun if this machine cannot run the plan."""
    require_privilege()
    require_kernels(plan)
    for server in plan.servers:
        if server.program != "builtin" and shutil.which(server.program) is None:
            raise CannotRun(
                f"{server.name}: {server.program} is not installed: apt install {PACKAGES[server.program]}, "
                'or use program="builtin"'
            )
    needed = real_memory(plan)
    available = meminfo("MemAvailable")
    if needed > available:
        raise CannotRun(
            f"this run needs {_megabytes(needed)} of real memory (clients and swap areas), and "
            f"{_megabytes(available)} are available: use less --memory or --workload-total, or a server with a file"
        )


def check_simulated(plan: Plan) -> None:
    """Raises CannotRun if the plan has what is not simulated."""
    from testbed.experiment import simulate

    try:
        simulate.check(plan)
    except LabError as error:
        raise CannotRun(str(error)) from None


def require_kernels(plan: Plan) -> None:
    """Raises CannotRun if a client that is to be a real kernel cannot be one, or not on this machine."""
    kernels = [client for client in plan.clients if client.host == "kernel"]
    if not kernels:
        return
    from testbed.hosts.kernel.guest_program import guest_program
    from testbed.hosts.kernel.steps import unsupported
    from testbed.hosts.kernel.uml import memory_directory

    for client in kernels:
        if why := unsupported(client):
            raise CannotRun(f"{client.name}: {why}")
    try:
        memory_directory(sum(client.memory for client in kernels))
        guest_program()
    except LabError as error:
        raise CannotRun(str(error)) from None


def require_privilege(status: Path = Path("/proc/self/status")) -> None:
    """Raises CannotRun unless this process may make network namespaces and use packet sockets."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        raise CannotRun("this needs Linux, with /proc mounted") from None
    held = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    if missing := [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]:
        raise CannotRun(f"this needs root ({', '.join(missing)} missing): run it with sudo")


def real_memory(plan: Plan) -> int:
    """Bytes of real memory that a run may come to use."""
    clients = sum(client.memory for client in plan.clients)
    areas = sum(area.bytes for server in plan.servers for area in server.areas if area.file is None)
    return clients + areas + OVERHEAD


def meminfo(name: str, path: Path = Path("/proc/meminfo")) -> int:
    """One line of /proc/meminfo, in bytes. Raises CannotRun when it is not there."""
    for line in path.read_text().splitlines():
        key, _, rest = line.partition(":")
        if key == name:
            return int(rest.split()[0]) * 1024
    raise CannotRun(f"{path} has no {name}")


def _megabytes(size: int) -> str:
    return format_size(-(-size >> 20) << 20)
