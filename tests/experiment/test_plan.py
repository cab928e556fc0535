"""Numbers of a plan: scaling with memory, overrides, addresses, and what is refused before anything is built."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import (
    Bystander,
    EtherTypeFlood,
    Ipv6UdpFlood,
    LinearTouch,
    NbdServer,
    Neighbour,
    SwapClient,
    TcpStream,
    TcpSynFlood,
    Topology,
    TopologyError,
    UdpFlood,
    VlanUdpFlood,
)
from testbed.experiment.load import load_topology
from testbed.experiment.plan import Overrides, Plan, resolve
from testbed.experiment.topology import Flood
from testbed.net.skbuff import Driver
from tests.experiment.small import build

MIB = 1 << 20
TOPOLOGIES = sorted((Path(__file__).parents[2] / "topologies").glob("*.py"))


def refusal(topology: Topology, **overrides: Any) -> str:
    with pytest.raises(TopologyError) as raised:
        resolve(topology, Overrides(**overrides))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_left_open_follows_from_the_memory() -> None:
    (client,) = resolve(build(client={"memory": "64M"})).clients
    assert (client.watermarks.min, client.watermarks.low, client.watermarks.high) == (256, 320, 384)
    assert client.min_free_kbytes == 1024
    assert client.workload.pages == 4 * 64 * MIB // 4096
    assert [bystander.buffer for bystander in client.bystanders] == [4 * MIB] * 3
    assert client.swap.bytes > 256 * MIB


def test_memory_from_the_command_line_scales_only_what_was_left_open() -> None:
    topology = build(client={"bystanders": [Bystander(), Bystander(buffer="1M", count=1)]})
    (client,) = resolve(topology, Overrides(memory=128 * MIB)).clients
    assert client.memory == 128 * MIB
    assert [bystander.buffer for bystander in client.bystanders] == [8 * MIB] * 3 + [1 * MIB]
    assert client.workload.pages == 512 * MIB // 4096
    fixed = build(client={"min_free_kbytes": 4096}, workload=LinearTouch(total="64M"))
    (client,) = resolve(fixed, Overrides(memory=128 * MIB)).clients
    assert (client.min_free_kbytes, client.workload.pages) == (4096, 64 * MIB // 4096)


def test_each_override_lands_where_it_belongs() -> None:
    plan = resolve(
        build(flood=UdpFlood(pps=10_000, size=1000)),
        Overrides(
            flood=2000, flood_size=64, bystander_buffer=12345, min_free_kbytes=2048, workload_total=32 * MIB, tasks=4
        ),
    )
    (client,), (flood,) = plan.clients, plan.floods
    assert (flood.pps, flood.size) == (2000, 64)
    assert {bystander.buffer for bystander in client.bystanders} == {12345}
    assert client.min_free_kbytes == 2048
    assert (client.workload.pages, client.workload.processes) == (8192, 4)


def test_a_flood_of_nothing_is_no_flood() -> None:
    assert resolve(build(flood=UdpFlood()), Overrides(flood=0)).floods == ()


def test_addresses_are_the_same_every_time_and_unlike_each_other() -> None:
    first, second = (resolve(load_topology(TOPOLOGIES[-2])[0]) for _ in range(2))
    assert first == second
    hosts = [interface for segment in first.segments for interface in segment.interfaces]
    for field in ("mac", "ipv4", "ipv6"):
        assert len({getattr(host, field) for host in hosts}) == len(hosts)
    assert hosts[0].address == "10.0.0.1"


def test_a_plan_survives_the_way_into_a_process() -> None:
    plan = resolve(build(flood=UdpFlood()))
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_clients_of_one_server_have_an_area_each() -> None:
    topology = Topology("shared")
    server, noise = topology.add(NbdServer("server")), topology.add(Neighbour("noise"))
    clients = [topology.add(SwapClient(f"c{number}", swap=server)) for number in range(3)]
    topology.connect(server, noise, *clients)
    for client in clients:
        topology.workload(client, LinearTouch())
    plan = resolve(topology)
    assert [area.client for area in plan.servers[0].areas] == ["c0", "c1", "c2"]
    assert len({area.port for area in plan.servers[0].areas}) == 3
    assert [client.swap for client in plan.clients] == list(plan.servers[0].areas)
    assert plan.canary_source(plan.clients[2]).name == "noise"


@pytest.mark.parametrize(
    ("flood", "ports"),
    [
        (UdpFlood(), (20000, 20001, 20002)),
        (UdpFlood(sockets=2), (20000, 20001)),
        (Ipv6UdpFlood(sockets=5), (20000, 20001, 20002, 40000, 40001)),
        (TcpSynFlood(port=81), (81,)),
        (EtherTypeFlood(), ()),
    ],
)
def test_floods_know_their_ports(flood: Flood, ports: tuple[int, ...]) -> None:
    (planned,) = resolve(build(flood=flood)).floods
    assert (planned.kind, planned.ports) == (flood.kind, ports)


def test_streams_go_to_tcp_bystanders_and_floods_to_udp_ones() -> None:
    bystanders = [Bystander(count=2), Bystander(count=2, protocol="tcp")]
    topology = build(client={"bystanders": bystanders}, flood=UdpFlood())
    topology.flood(noise_of(topology), topology.clients[0], TcpStream(bytes_per_second="1M", start="workload"))
    plan = resolve(topology)
    (flood,), (stream,) = plan.floods, plan.streams
    assert (flood.ports, stream.ports) == ((20000, 20001), (20002, 20003))
    assert (stream.bytes_per_second, stream.start, stream.target.host) == (MIB, "workload", "client")
    assert [bystander.protocol for bystander in plan.clients[0].bystanders] == ["udp", "udp", "tcp", "tcp"]
    assert resolve(topology, Overrides(flood=0)).streams == ()
    lonely = build()
    lonely.flood(noise_of(lonely), lonely.clients[0], TcpStream())
    assert 'a TcpStream needs bystanders with protocol="tcp"' in refusal(lonely)


def noise_of(topology: Topology) -> Neighbour:
    return next(host for host in topology.hosts if isinstance(host, Neighbour))


def test_a_tag_makes_room_for_itself() -> None:
    assert resolve(build(flood=VlanUdpFlood(size=1518))).floods[0].vlan == 100
    assert "1514" in refusal(build(flood=UdpFlood(size=1515)))


def test_memory_too_small_for_its_ring() -> None:
    line = refusal(build(), memory=1 * MIB)
    assert line.startswith("client: 1M of memory is too small for a receive ring of 128 buffers")
    assert "too small" in refusal(build(client={"ring": 4096}), memory=32 * MIB)
    assert "too small" in refusal(build(), min_free_kbytes=16384)
    assert "does not suit" in refusal(build(), memory=4096, workload_total=64 * MIB)


def test_a_bystander_buffer_that_no_socket_can_have() -> None:
    assert refusal(build(), bystander_buffer=8 << 30) == "client: a bystander's buffer of 8G is more than 2G"


def test_a_ring_that_can_outgrow_the_half_reserve_is_run_with_a_warning() -> None:
    assert resolve(build()).warnings == ()
    (warning,) = resolve(build(client={"ring": 256})).warnings
    assert "256 ring buffers takes 144 pages, more than the 128" in warning


@pytest.mark.parametrize(
    ("host", "timeout", "lines"), [("kernel", None, 1), ("kernel", 5, 0), ("emulated", None, 0), ("emulated", 5, 0)]
)
def test_a_kernel_that_is_to_reconnect_needs_a_timeout_for_what_was_under_way(
    host: str, timeout: float | None, lines: int
) -> None:
    plan = resolve(build(client={"host": host, "nbd_dead_conn_timeout": 10, "nbd_timeout": timeout}))
    assert sum("nbd_timeout, which is not set" in line for line in plan.warnings) == lines


@pytest.mark.parametrize(
    ("of_topology", "of_command_line", "driver"),
    [
        ("linear", None, "linear"),
        ("linear", "vector", "vector"),
        ("frag", "vector", "frag"),
        ("vector", None, "vector"),
    ],
)
def test_the_command_line_names_the_driver_where_the_topology_has_the_ordinary_one(
    of_topology: str, of_command_line: Driver | None, driver: str
) -> None:
    (client,) = resolve(build(client={"driver": of_topology}), Overrides(driver=of_command_line)).clients
    assert client.driver == driver


@pytest.mark.parametrize(
    ("named", "preset", "host", "order"),
    [
        (None, "v9", "emulated", 0),
        (None, "3.6", "emulated", 0),
        (None, "6.1", "emulated", 3),
        (None, "v9", "kernel", 3),
        (2, "v9", "emulated", 2),
        (0, "6.1", "kernel", 0),
    ],
)
def test_how_large_a_slab_slub_asks_for(named: int | None, preset: str, host: str, order: int) -> None:
    (client,) = resolve(build(client={"slub_max_order": named, "host": host}), Overrides(preset=preset)).clients
    assert client.slub_max_order == order


@pytest.mark.parametrize(("driver", "pages"), [("linear", None), ("frag", None), ("page", 152)])
def test_a_driver_that_takes_more_for_a_frame_needs_a_smaller_ring(driver: str, pages: int | None) -> None:
    warnings = resolve(build(client={"driver": driver})).warnings
    assert [f"takes {pages} pages" in line for line in warnings] == [True] * (pages is not None)
    assert resolve(build(client={"driver": driver, "ring": 64})).warnings == ()


def test_what_a_client_says_of_its_nic_reaches_its_process() -> None:
    (client,) = resolve(build(client={"driver": "frag", "copybreak": 256, "tap": "1M", "gro": True})).clients
    assert (client.driver, client.copybreak, client.tap, client.gro) == ("frag", 256, 1 << 20, True)
    (usual,) = resolve(build()).clients
    assert (usual.driver, usual.copybreak, usual.tap, usual.gro) == ("linear", 0, None, False)


def test_a_swap_area_too_small_for_the_workload() -> None:
    topology = build(server={"size": "128M"}, workload=LinearTouch(total="128M"))
    assert "server: a swap area of 128M is too small for the workload of client" in refusal(topology)
    assert resolve(topology, Overrides(workload_total=64 * MIB)).servers[0].areas[0].bytes == 128 * MIB


def test_what_makes_no_sense_together() -> None:
    assert "no flood" in refusal(build(), flood=100)
    assert "no flood" in refusal(build(), flood_size=100)
    assert "less than a page for each of 16 tasks" in refusal(build(), workload_total=4096)
    assert "no UDP bystanders" in refusal(build(client={"bystanders": []}, flood=UdpFlood()))
    assert "port 9007 is taken" in refusal(build(client={"bystanders": [Bystander(port=9007)]}))
    assert "no SwapClient" in refusal(Topology("empty"))


def test_a_memory_policy_is_about_nodes_that_the_client_has() -> None:
    workload = LinearTouch(mempolicy="bind:1")
    assert "names a node that it has not: it has nodes=1" in refusal(build(workload=workload))
    (client,) = resolve(build(client={"nodes": 2}, workload=workload)).clients
    assert client.workload.mempolicy == "bind:1"


def test_what_is_not_connected() -> None:
    topology = Topology("apart")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", swap=server))
    assert "server: it is not connected to anything" in refusal(topology)
    near, far = topology.add(Neighbour("near")), topology.add(Neighbour("far"))
    topology.connect(client, near)
    topology.link(server, far)
    topology.workload(client, LinearTouch())
    assert "client: it is not connected to its swap server server" in refusal(topology)


def test_a_flood_needs_a_way() -> None:
    topology = build()
    lonely, other = topology.add(Neighbour("lonely")), topology.add(Neighbour("other"))
    topology.link(lonely, other)
    topology.flood(lonely, topology.clients[0], UdpFlood())
    assert "lonely: it is not connected to client, which it floods" in refusal(topology)


def test_a_client_needs_a_workload_and_somebody_to_hear() -> None:
    topology = Topology("bare")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", swap=server))
    topology.link(server, client)
    assert "client: it has no workload" in refusal(topology)
    topology.workload(client, LinearTouch())
    assert "client: it needs a Neighbour" in refusal(topology)


WITHOUT_FLOOD = {
    *("swap_quiet", "thousand_clients", "cover_letter", "loss_latency"),
    *("noisy_client", "server_restart", "same_host"),
}


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_the_topologies_we_ship_can_be_run(path: Path) -> None:
    topology, _ = load_topology(path)
    assert topology.name == path.stem
    plan = resolve(topology)
    assert plan.warnings == ()
    assert plan.clients
    if path.stem not in WITHOUT_FLOOD:
        assert {flood.target.host for flood in plan.floods} == {client.name for client in plan.clients}


@pytest.mark.parametrize("memory", [32 * MIB, 64 * MIB, 1024 * MIB])
@pytest.mark.parametrize("tasks", [4, 64])
@pytest.mark.parametrize("size", [64, 1400])
def test_the_demo_can_be_run_over_its_whole_range(memory: int, tasks: int, size: int) -> None:
    plan = resolve(build(flood=UdpFlood()), Overrides(memory=memory, tasks=tasks, flood_size=size))
    assert plan.clients[0].memory == memory


@given(
    memory=st.integers(1, 4096 * MIB),
    ring=st.sampled_from([8, 64, 128, 256, 4096]),
    reserve=st.none() | st.integers(1, 1 << 22),
)
def test_a_plan_fits_its_memory_or_is_refused_in_one_line(memory: int, ring: int, reserve: int | None) -> None:
    topology = build(client={"ring": ring})
    plan: Plan | None = None
    with contextlib.suppress(TopologyError):
        plan = resolve(topology, Overrides(memory=memory, min_free_kbytes=reserve, workload_total=64 * MIB))
    if plan is None:
        refusal(topology, memory=memory, min_free_kbytes=reserve, workload_total=64 * MIB)
        return
    (client,) = plan.clients
    assert 4 * (ring * 2304 + client.watermarks.high * 4096) <= client.memory <= memory


def test_only_our_own_server_can_be_given_a_bandwidth() -> None:
    ours = resolve(build(server={"bandwidth": "32M"}))
    assert ours.servers[0].areas[0].bandwidth == 32 << 20
    theirs = resolve(build(server={"bandwidth": "32M", "program": "nbdkit"}))
    assert theirs.servers[0].areas[0].bandwidth is None
    assert any("nbdkit runs as fast as it can" in line for line in theirs.warnings)
