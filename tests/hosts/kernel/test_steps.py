"""What a guest is told, and what a kernel host refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.plan import resolve
from testbed.hosts.kernel import steps
from testbed.hosts.plan import ClientPlan
from testbed.nbd.client_tls import TlsFiles
from testbed.net.tcp_init import tcp_send_limit


def client_plan(**options: Any) -> ClientPlan:
    topology = Topology("one")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", swap=server, memory="128M", host="kernel", **options))
    topology.connect(server, client, topology.add(Neighbour("noise")))
    topology.workload(client, LinearTouch(processes=8, total="256M", passes=2))
    return resolve(topology).clients[0]


def test_setup_gives_the_guest_its_address_reserve_sockets_and_swap_in_this_order() -> None:
    plan = client_plan(bystanders=[Bystander(reader="faulting", count=1, buffer="1M")], min_free_kbytes=1000)
    lines = list(steps.setup(plan, [("10.0.0.1", "02:00:0a:00:00:01")], [Path("/x/nbd.ko")]))
    assert [line.split()[0] for line in lines] == [
        *("module", "read", "sysctl", "sysctl", "sysctl", "up", "neighbour", "socket", "socket", "swap", "sample")
    ]
    assert "module /nbd.ko max_part=0 nbds_max=1" in lines
    assert "sysctl vm/min_free_kbytes 1000" in lines
    assert "up vec0 10.0.0.2 255.255.0.0 1500" in lines
    assert "neighbour vec0 10.0.0.1 02:00:0a:00:00:01" in lines
    assert f"socket faulting {plan.bystanders[0].port} {1 << 20}" in lines
    send_buffer = tcp_send_limit(plan.memory // 4096)
    assert f"swap {plan.swap.address} {plan.swap.port} {plan.swap.bytes} 0 {send_buffer} 0 0" in lines


def test_udp_mem_holds_what_the_bystanders_may() -> None:
    plan = client_plan(bystanders=[Bystander(count=3, buffer="16M")])
    line = next(line for line in steps.setup(plan, [], []) if "udp_mem" in line)
    assert int(line.split()[-1]) >= 3 * (16 << 20) // 4096


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tcp_mem": (1, 2, 3)}, "sysctl net/ipv4/tcp_mem 1 2 3"),
        ({"udp_mem": (4, 5, 6)}, "sysctl net/ipv4/udp_mem 4 5 6"),
        ({"neighbour_timeout": 0.02}, "sysctl net/ipv4/neigh/vec0/base_reachable_time_ms 20"),
        ({"mtu": 1400}, "up vec0 10.0.0.2 255.255.0.0 1400"),
    ],
)
def test_settings_reach_the_guest(options: dict[str, Any], line: str) -> None:
    assert line in list(steps.setup(client_plan(**options), [], []))


def test_the_timeouts_of_nbd_are_whole_seconds() -> None:
    plan = client_plan(nbd_timeout=0.5, nbd_dead_conn_timeout=60)
    line = next(line for line in steps.setup(plan, [], []) if line.startswith("swap "))
    assert line.split()[6:8] == ["1", "60"]


def test_the_workload_takes_turns_as_the_emulated_one_does() -> None:
    assert steps.workload(client_plan(), 77) == "workload 8 65536 2 8 77"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"zones": "i386"}, "zones"),
        ({"nodes": 2}, "nodes"),
        ({"driver": "page"}, "driver"),
        ({"copybreak": 256}, "copybreak"),
        ({"tap": "1M"}, "tap"),
        ({"gro": True}, "gro"),
        ({"nbd_connections": 2}, "nbd_connections"),
        ({"tls": TlsFiles("ca.pem")}, "tls"),
        ({"bystanders": [Bystander(reader="corked")]}, "corked"),
        ({"bystanders": [Bystander(protocol="tcp")]}, "TCP"),
    ],
)
def test_what_a_kernel_host_has_not_is_refused_in_a_line(options: dict[str, Any], word: str) -> None:
    why = steps.unsupported(client_plan(**options))
    assert why is not None
    assert word in why
    assert "\n" not in why


def test_a_plain_client_is_not_refused() -> None:
    assert steps.unsupported(client_plan()) is None
