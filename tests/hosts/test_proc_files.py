"""/proc as the model has it: what a kernel's reader finds there, and the exact text where the kernel's is known."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from testbed.experiment.output import RunDirectory
from testbed.hosts.kernel import proc_text
from testbed.hosts.proc_files import proc_files
from testbed.mm.memory import Vma
from testbed.mm.sched import Task
from testbed.net.snmp import NetStat
from testbed.patches import PRESETS, Switches
from tests.mm.machine import Machine
from tests.virtual_time import simulate

V9, V3_6, V6_1 = (Switches.of(PRESETS[name].patches, PRESETS[name].rules) for name in ("v9", "3.6", "6.1"))
VANILLA = Switches.of(PRESETS["vanilla"].patches, PRESETS["vanilla"].rules)


def after_swapping(switches: Switches, **options: object) -> tuple[Machine, dict[str, str]]:
    """A machine whose task has written more than there is memory for, and its files."""
    machine = Machine(switches=switches, page_cache=64, **options)  # type: ignore[arg-type]

    async def main() -> None:
        kswapd = asyncio.create_task(machine.node.kswapd.run())
        vma = Vma(Task("user"), 1200)
        for index in range(1200):
            await machine.node.memory.handle_mm_fault(vma.owner, vma, index, write=True)
        await asyncio.sleep(1)
        kswapd.cancel()

    simulate(main())
    return machine, proc_files(machine.node, NetStat(InDatagrams=7, PFMemallocDrop=3, InErrors=5), "/dev/nbd0")


@pytest.mark.parametrize("switches", [V9, V3_6, V6_1], ids=["v9", "3.6", "6.1"])
def test_a_kernels_reader_finds_the_models_counters(switches: Switches) -> None:
    machine, files = after_swapping(switches)
    counters = machine.node.counters()
    read = proc_text.pairs(files["vmstat"])
    for name in ("nr_free_pages", "nr_inactive_anon", "nr_slab_unreclaimable", "pswpout", "pgfault", "pageoutrun"):
        assert read[name] == counters[name], name
    assert read["pswpout"] > 0
    assert read["pgalloc_normal"] == counters["pgalloc"]
    assert read["nr_anon_pages"] == 1200 - machine.node.swap.inuse_pages
    zones = proc_text.zoneinfo(files["zoneinfo"])
    marks = machine.node.zone.watermarks
    assert (zones.min, zones.low, zones.high) == (marks.min, marks.low, marks.high)
    memory = proc_text.meminfo(files["meminfo"])
    assert (memory["MemTotal"], memory["MemFree"]) == (1024, counters["nr_free_pages"])
    assert memory["SwapTotal"] - memory["SwapFree"] == machine.node.swap.inuse_pages > 0
    assert memory["Inactive"] == memory["Inactive(anon)"] + memory["Inactive(file)"]
    assert proc_text.tables(files["net/snmp"])["Udp"]["InDatagrams"] == 7


def test_names_of_one_version_only() -> None:
    old, new = (after_swapping(switches)[1] for switches in (V3_6, V6_1))
    names = [set(proc_text.pairs(files["vmstat"])) for files in (old, new)]
    assert {"pgscan_direct_normal", "pgsteal_kswapd_normal", "allocstall", "kswapd_skip_congestion_wait"} <= names[0]
    assert {"pgscan_direct", "pgsteal_kswapd", "allocstall_normal", "oom_kill", "swap_ra"} <= names[1]
    assert not {"allocstall_normal", "pgscan_direct", "nr_throttled_written"} & names[0]
    assert not {"pgscan_direct_normal", "allocstall"} & names[1]
    assert "all_unreclaimable: 0" in old["zoneinfo"]
    assert "managed" not in old["zoneinfo"]
    assert proc_text.tables(old["net/netstat"])["TcpExt"].keys() == {"TCPBacklogDrop"}
    assert list(proc_text.tables(new["net/netstat"])["TcpExt"])[:2] == ["TCPBacklogDrop", "PFMemallocDrop"]
    assert proc_text.tables(new["net/netstat"])["TcpExt"]["PFMemallocDrop"] == 3


@pytest.mark.parametrize(("switches", "counted"), [(V9, True), (VANILLA, False)], ids=["v9", "vanilla"])
def test_the_counter_of_throttled_reclaimers_came_with_patch_16(switches: Switches, counted: bool) -> None:
    _, files = after_swapping(switches)
    assert ("pgscan_direct_throttle" in proc_text.pairs(files["vmstat"])) == counted


def test_zoneinfo_of_6_1_to_the_letter() -> None:
    machine = Machine(switches=V6_1)
    marks = machine.node.zone.watermarks
    assert proc_files(machine.node, NetStat(), "/dev/nbd0")["zoneinfo"] == (
        "Node 0, zone   Normal\n"
        "  pages free     1024\n"
        "        boost    0\n"
        f"        min      {marks.min}\n"
        f"        low      {marks.low}\n"
        f"        high     {marks.high}\n"
        "        spanned  1024\n"
        "        present  1024\n"
        "        managed  1024\n"
        "        cma      0\n"
        "        protection: (0, 0, 0, 0)\n"
        "      nr_free_pages 1024\n"
        "  pagesets\n"
        "    cpu: 0\n"
        "              count: 0\n"
        f"              high:  {machine.node.zone.pcp.high}\n"
        f"              batch: {machine.node.zone.pcp.batch}\n"
        "  start_pfn:           0\n"
    )


def test_buddyinfo_and_swaps_to_the_letter() -> None:
    machine = Machine(switches=V6_1)
    files = proc_files(machine.node, NetStat(), "/dev/nbd0")
    assert files["buddyinfo"] == "Node 0, zone   Normal " + "     0 " * 10 + "     1 \n"
    assert files["swaps"] == (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/nbd0                               partition\t32764\t\t0\t\t-2\n"
    )
    old = proc_files(Machine(switches=V9).node, NetStat(), "/dev/nbd0")
    assert old["swaps"].splitlines()[1].split("\t") == ["/dev/nbd0" + " " * 31 + "partition", "32764", "0", "-1"]


def test_with_several_zones_the_highest_has_what_is_counted_for_the_machine() -> None:
    machine, files = after_swapping(V6_1, pages=8192, zones="x86_64", swap_pages=8192)
    read = proc_text.pairs(files["vmstat"])
    assert [name for name in read if name.startswith("pgalloc_")] == ["pgalloc_dma", "pgalloc_dma32"]
    assert read["pgalloc_dma32"] == machine.node.counters()["pgalloc"]
    assert files["zoneinfo"].count("Node 0, zone") == files["buddyinfo"].count("Node 0, zone") == 2


def test_a_run_leaves_them_in_one_file_for_each_client(tmp_path: Path) -> None:
    with RunDirectory.create("run", tmp_path / "run") as directory:
        directory.proc("client", {"swaps": "a\n", "net/snmp": "b\n"})
        directory.proc("guest", {})
        text = (directory.path / "proc-client.txt").read_text()
        assert text == "==> /proc/swaps <==\na\n\n==> /proc/net/snmp <==\nb\n"
        assert not (directory.path / "proc-guest.txt").exists()
        directory.discard()
        assert not directory.path.exists()
