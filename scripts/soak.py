"""Soak: random faults on real sockets, seed after seed.

`sudo scripts/nemesis [--seeds 0-29] [--seconds S] [--layers all|link,...] [--host emulated|kernel] [--out DIR]`.
Every seed is one run of a small flooded client with the faults drawn from that seed. A run may fail if the verdict
says why. It must not end in `error`, lose count of frames or pages, hold a wrong page that no fault explains, or
leave a process or a namespace behind. Status 0: none did; 1: one did.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood
from testbed.experiment.arguments import Parser, parse_run
from testbed.experiment.command import run_once
from testbed.experiment.faults.nemesis import NEMESIS_S
from testbed.experiment.live import NoView
from testbed.experiment.result import Result
from testbed.hosts.plan import ClientHost

SPOILS_DATA = frozenset({"kill", "torn_write", "garbled_reply"})
"""Faults that can put a wrong page where a right one was."""
SPARE_S = 60.0
"""How much longer than its faults a run may take."""
STALL_LIMIT_S = 10.0
ACCOUNTS = "conservation"
PROC = Path("/proc/self")


MEMORY: dict[ClientHost, str] = {"emulated": "16M", "kernel": "40M"}
TOTAL: dict[ClientHost, str] = {"emulated": "48M", "kernel": "80M"}
"""The client's memory and what its tasks map: no kernel boots with less."""


def battered(host: ClientHost = "emulated") -> Topology:
    """One client with every sort of bystander, a server as slow as a disk, and a flood."""
    topology = Topology("nemesis")
    server = topology.add(NbdServer("server", bandwidth="12M"))
    readers = [Bystander(count=2), Bystander(reader="prompt", count=1), Bystander(reader="faulting", count=1)]
    client = topology.add(
        SwapClient(
            "client",
            host=host,
            memory=MEMORY[host],
            min_free_kbytes=1024,
            swap=server,
            bystanders=readers,
            nbd_timeout=5,
            nbd_dead_conn_timeout=10,
        )
    )
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=8, total=TOTAL[host], passes=2))
    topology.flood(noise, client, UdpFlood(pps=5_000, size=1000))
    return topology


def complaints(result: Result, before: set[str]) -> list[str]:
    """What must not have happened and did."""
    found = [f"error: {result.error}"] if result.outcome == "error" else []
    found += [f"{check.name}: {check.evidence}" for check in result.checks if check.name == ACCOUNTS and not check.ok]
    happened = {fault.kind for fault in result.faults if fault.set_at is not None}
    if result.workload.corrupt and not happened & SPOILS_DATA:
        found.append(f"{result.workload.corrupt} pages were wrong, which no fault explains")
    return found + [f"{what} is left" for what in leftovers() - before]


def leftovers() -> set[str]:
    """Our child processes, and the namespaces that we hold."""
    children = {f"process {pid}" for task in PROC.glob("task/*/children") for pid in task.read_text().split()}
    return children | {f"namespace {held.readlink()}" for held in PROC.glob("fd/*") if _is_namespace(held)}


def _is_namespace(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("net:")
    except OSError:
        return False


def seeds(text: str) -> range:
    """`7` or `0-29`."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run all seeds; returns the exit status."""
    parser = Parser(prog="nemesis", description="Random faults on real sockets.")
    parser.add_argument("--seeds", type=seeds, default=range(30), metavar="FIRST[-LAST]", help="default 0-29")
    parser.add_argument("--seconds", type=float, default=NEMESIS_S, help="of faults in each run (default %(default)s)")
    parser.add_argument("--layers", default="all", help="all (default), or some of link,storage,process,memory")
    parser.add_argument("--host", choices=list(MEMORY), default="emulated", help="of the client (default %(default)s)")
    parser.add_argument("--out", type=Path, help="where the runs go (default: a new temporary directory)")
    space = parser.parse_args(argv)
    out = space.out or Path(tempfile.mkdtemp(prefix="nemesis-"))
    bad = 0
    for seed in space.seeds:
        began, before = time.monotonic(), leftovers()
        words = ["--nemesis", space.layers, "--nemesis-duration", str(space.seconds), "--seed", str(seed)]
        options = parse_run([*words, "--stall-limit", str(STALL_LIMIT_S), "--out", str(out / str(seed))], "soak.py")
        result = run_once(battered(space.host), replace(options, time_limit=space.seconds + SPARE_S), NoView())
        wrong = complaints(result, before)
        bad += bool(wrong)
        came = sum(fault.set_at is not None for fault in result.faults)
        print(f"seed {seed}: {result.outcome}, {came} of {len(result.faults)} faults", end="")
        print(f", {time.monotonic() - began:.0f} s{''.join(f'; {each}' for each in wrong)}", flush=True)
    print(f"{len(space.seeds)} runs, {bad} of them bad: {out}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
