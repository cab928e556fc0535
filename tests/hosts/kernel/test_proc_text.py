"""The kernel's text files, as a guest printed them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.hosts.kernel import proc_text
from testbed.hosts.kernel.proc_text import Switch, Zones
from tests.hosts.kernel import proc_samples as samples


def test_meminfo_is_in_pages_and_leaves_out_what_is_no_memory() -> None:
    assert proc_text.meminfo(samples.MEMINFO) == {
        "MemTotal": 30816,
        "MemFree": 362,
        "SwapTotal": 65791,
        "SwapFree": 40791,
        "Writeback": 105,
    }


def test_tables_pair_names_with_numbers() -> None:
    tables = proc_text.tables(samples.SNMP)
    assert tables["Udp"]["RcvbufErrors"] == 275780
    assert tables["Tcp"]["MaxConn"] == -1
    assert proc_text.tables(samples.NETSTAT)["TcpExt"]["PFMemallocDrop"] == 668


def test_the_rows_of_net_dev() -> None:
    vec0 = proc_text.net_dev(samples.NET_DEV)["vec0"]
    assert (vec0["rx_packets"], vec0["rx_drop"], vec0["tx_packets"], vec0["tx_drop"]) == (524526, 7, 67504, 1)


def test_udp_drops_by_port() -> None:
    assert proc_text.udp_drops(samples.UDP) == {20000: 92000, 9007: 0}


def test_softnet_stat_is_hexadecimal_and_adds_up_processors() -> None:
    assert proc_text.softnet_stat(samples.SOFTNET) == {"processed": 0x800CF, "dropped": 3, "time_squeeze": 3}


def test_a_processors_time_in_seconds() -> None:
    seconds = proc_text.cpu_seconds(samples.STAT)
    assert (seconds["user"], seconds["system"], seconds["softirq"]) == (0.12, 29.78, 0.2)


def test_a_block_devices_pages_count_both_ways() -> None:
    assert proc_text.block_pages(samples.NBD_STAT) == (523824 + 742944) // 8
    assert proc_text.block_pages("") == 0


def test_zones_add_up() -> None:
    assert proc_text.zoneinfo(samples.ZONEINFO) == Zones(managed=30816, min=362, low=452, high=542)


def test_a_built_kernels_switches() -> None:
    switches = proc_text.switches(samples.TESTBED)
    assert switches["sock_memalloc"] == Switch(on=False, count=12)
    assert switches["kmalloc_reserve"] == Switch(on=True, count=700)


@pytest.mark.parametrize(
    "name", ["vmstat", "meminfo", "net/snmp", "net/netstat", "net/dev", "net/softnet_stat", "stat"]
)
def test_this_machines_own_files_can_be_read(name: str) -> None:
    path = Path("/proc") / name
    if not path.exists():
        pytest.skip(f"no {path} here")
    parse = {
        "vmstat": proc_text.pairs,
        "meminfo": proc_text.meminfo,
        "net/snmp": proc_text.tables,
        "net/netstat": proc_text.tables,
        "net/dev": proc_text.net_dev,
        "net/softnet_stat": proc_text.softnet_stat,
        "stat": proc_text.cpu_seconds,
    }[name]
    assert parse(path.read_text())


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,20}", fullmatch=True), st.integers(0, 1 << 64)))
def test_pairs_come_back(counters: dict[str, int]) -> None:
    text = "".join(f"{name} {value}\n" for name, value in counters.items())
    assert proc_text.pairs(text + "not a counter\n") == counters


@pytest.mark.parametrize(
    ("line", "largest"),
    [
        ("Normal: 39*4kB (UME) 63*8kB (U) 0*16kB 0*32kB 0*4096kB = 660kB", 2),
        ("Normal: 1*4kB (U) 0*8kB 0*16kB 1*32kB (M) 0*64kB = 36kB\nHighMem: 0*4kB 3*64kB (M) = 192kB", 16),
        ("Normal: 0*4kB 0*8kB = 0kB", 0),
        ("Mem-Info:\n free:165 free_pcp:25\n Normal free:660kB min:1448kB", None),
    ],
)
def test_the_largest_free_block_of_a_memory_dump(line: str, largest: int | None) -> None:
    assert proc_text.largest_free_block(f"[   29.55] Mem-Info:\n{line}\n6125 total pagecache pages\n") == largest
