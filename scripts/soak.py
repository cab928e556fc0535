"""Soak: random faults on real sockets, seed after seed.

`sudo scripts/nemesis [--seeds 0-29] [--seconds S] [--layers all|link,...] [--out DIR]`. Every seed is one run of a
small flooded client with the faults drawn from that seed. A run may fail if the verdict says why. It must not end in
`error`, lose count of frames or pages, hold a wrong page that no fault explains, or leave a process or a mount behind
(a namespace that stays is an error). Status 0: none did; 1: one did.
"""

from __future__ import annotations

import os
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

SPOILS_DATA = frozenset({"kill", "torn_write", "garbled_reply"})
"""Faults that can put a wrong page where a right one was."""
SPARE_S = 60.0
"""How much longer than its faults a run may take."""
STALL_LIMIT_S = 10.0
ACCOUNTS = "conservation"


def battered() -> Topology:
    """One client with every sort of bystander, a server as slow as a disk, and a flood."""
    topology = Topology("nemesis")
    server = topology.add(NbdServer("server", bandwidth="12M"))
    readers = [Bystander(count=2), Bystander(reader="prompt", count=1), Bystander(reader="faulting", count=1)]
    client = topology.add(SwapClient("client", memory="16M", min_free_kbytes=1024, swap=server, bystanders=readers))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=8, total="48M", passes=2))
    topology.flood(noise, client, UdpFlood(pps=5_000, size=1000))
    return topology


def complaints(result: Result, before: tuple[set[str], set[str]]) -> list[str]:
    """What must not have happened and did."""
    found = [f"error: {result.error}"] if result.outcome == "error" else []
    found += [f"{check.name}: {check.evidence}" for check in result.checks if check.name == ACCOUNTS and not check.ok]
    happened = {fault.kind for fault in result.faults if fault.set_at is not None}
    if result.workload.corrupt and not happened & SPOILS_DATA:
        found.append(f"{result.workload.corrupt} pages were wrong, which no fault explains")
    found += [f"{what} left behind" for now, then in zip(leftovers(), before, strict=True) for what in now - then]
    return found


def leftovers() -> tuple[set[str], set[str]]:
    """Our processes, and the mounts."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return {f"process {pid}" for pid in _children(os.getpid())}, {f"mount {mount}" for mount in mounts}


def _children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


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
    parser.add_argument("--out", type=Path, help="where the runs go (default: a new temporary directory)")
    space = parser.parse_args(argv)
    out = space.out or Path(tempfile.mkdtemp(prefix="nemesis-"))
    bad = 0
    for seed in space.seeds:
        began, before = time.monotonic(), leftovers()
        words = ["--nemesis", space.layers, "--nemesis-duration", str(space.seconds), "--seed", str(seed)]
        options = parse_run([*words, "--stall-limit", str(STALL_LIMIT_S), "--out", str(out / str(seed))], "soak.py")
        result = run_once(battered(), replace(options, time_limit=space.seconds + SPARE_S), NoView())
        wrong = complaints(result, before)
        bad += bool(wrong)
        came = sum(fault.set_at is not None for fault in result.faults)
        print(f"seed {seed}: {result.outcome}, {came} of {len(result.faults)} faults", end="")
        print(f", {time.monotonic() - began:.0f} s{''.join(f'; {each}' for each in wrong)}", flush=True)
    print(f"{len(space.seeds)} runs, {bad} of them bad: {out}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
