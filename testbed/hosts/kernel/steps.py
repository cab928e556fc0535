"""What the guest is told, line by line: first to become the plan's client, later to work, at last to come to its end.

A plan that asks for what a kernel host has not is refused here, before anything is started.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from testbed.hosts.emulated_client import CANARY_RCVBUF, default_udp_mem
from testbed.hosts.kernel.uml import INTERFACE, READ_FILE
from testbed.hosts.plan import ClientPlan
from testbed.hosts.workload import TOUCHES_PER_ROUND
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.tcp_init import tcp_send_limit

NBD_PARAMETERS = "max_part=0 nbds_max=1"


def unsupported(plan: ClientPlan) -> str | None:
    """Why this client cannot be a kernel, or None: User Mode Linux has one kind of machine and one driver."""
    differences = {
        "zones": (plan.zones, "normal"),
        "nodes": (plan.nodes, 1),
        "mempolicy": (plan.workload.mempolicy, None),
        "driver": ("vector" if plan.driver == "linear" else plan.driver, "vector"),
        "copybreak": (plan.copybreak, 0),
        "tap": (plan.tap, None),
        "virtual_machines": (len(plan.virtual_machines), 0),
        "gro": (plan.gro, False),
        "nbd_connections": (plan.nbd_connections, 1),
        "tls": (plan.tls, None),
        "same_host": (plan.swap.same_host is not None, False),
    }
    for name, (value, only) in differences.items():
        if value != only:
            return f"{name}={value!r} is for emulated clients: a kernel host has {only!r} only"
    for bystander in plan.bystanders:
        if bystander.protocol != "udp" or bystander.reader == "corked":
            return (
                f"its {bystander.reader} {bystander.protocol.upper()} bystander is for emulated clients: "
                "a kernel host's are UDP ones, and not corked"
            )
    return None


def setup(plan: ClientPlan, neighbours: Iterable[tuple[str, str]], modules: Iterable[Path]) -> Iterator[str]:
    """The lines that make the guest the plan's client. `neighbours` are addresses and MAC addresses."""
    for module in modules:
        yield f"module /{module.name}" + (f" {NBD_PARAMETERS}" if module.stem == "nbd" else "")
    yield f"read /{READ_FILE}"
    interface = ipaddress.ip_interface(plan.interface.ipv4)
    yield "sysctl vm/watermark_boost_factor 0"
    yield f"sysctl vm/min_free_kbytes {plan.min_free_kbytes}"
    udp_mem = plan.udp_mem or default_udp_mem(plan, plan.memory // PAGE_SIZE - plan.watermarks.high)
    yield f"sysctl net/ipv4/udp_mem {' '.join(map(str, udp_mem))}"
    if plan.tcp_mem is not None:
        yield f"sysctl net/ipv4/tcp_mem {' '.join(map(str, plan.tcp_mem))}"
    yield f"up {INTERFACE} {interface.ip} {interface.netmask} {plan.interface.mtu}"
    for address, mac in neighbours:
        yield f"neighbour {INTERFACE} {address} {mac}"
    if plan.neighbour_timeout is not None:
        yield from _neighbour_timeout(plan.neighbour_timeout)
    yield f"socket prompt {plan.canary_port} {CANARY_RCVBUF}"
    for bystander in plan.bystanders:
        yield f"socket {bystander.reader} {bystander.port} {bystander.buffer}"
    swap = plan.swap
    send_buffer = plan.send_buffer or tcp_send_limit(plan.memory // PAGE_SIZE)
    buffers = f"{plan.receive_buffer or 0} {send_buffer}"
    timeouts = f"{_whole(plan.nbd_timeout)} {_whole(plan.nbd_dead_conn_timeout)}"
    yield f"swap {swap.address} {swap.port} {swap.bytes} {buffers} {timeouts} {swap.export}".rstrip()
    yield "sample"


def workload(plan: ClientPlan, seed: int) -> str:
    """The line that starts the tasks."""
    work = plan.workload
    turn = max(1, TOUCHES_PER_ROUND // work.processes)
    return f"workload {work.processes} {work.pages} {work.passes} {turn} {seed}"


def ending() -> Iterator[str]:
    """The lines of an orderly end: read what is left, let go of swap, take no more frames, say all counters."""
    yield "drain"
    yield "unswap"
    yield f"down {INTERFACE}"
    yield "last"


def _whole(seconds: float | None) -> int:
    """The driver's timeouts are whole seconds, 0 for none."""
    return math.ceil(seconds or 0.0)


def _neighbour_timeout(seconds: float) -> Iterator[str]:
    settings = {
        "base_reachable_time_ms": max(1, round(seconds * 1000)),
        "gc_stale_time": max(1, round(seconds)),
        "delay_first_probe_time": 0,
    }
    for name, value in settings.items():
        yield f"sysctl net/ipv4/neigh/{INTERFACE}/{name} {value}"
