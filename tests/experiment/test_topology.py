"""Declaring a topology: what is accepted, and the one line each mistake gets at the place it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testbed import (
    ArpFlood,
    Bystander,
    EtherTypeFlood,
    LinearTouch,
    NbdServer,
    Neighbour,
    SwapClient,
    TcpStream,
    TcpSynFlood,
    Topology,
    TopologyError,
    UdpFlood,
    VirtualMachine,
    VlanUdpFlood,
)
from testbed.experiment.topology import Flood


def wrong(value: object) -> Any:
    """A value of a type that a type checker would refuse."""
    return value


def test_hosts_come_back_from_add_and_keep_their_order() -> None:
    topology = Topology("small")
    server = topology.add(NbdServer("server", size="512M"))
    client = topology.add(SwapClient("client", swap=server))
    assert topology.hosts == [server, client]
    assert topology.clients == [client]


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        (lambda: Topology("two words"), "topology name 'two words'"),
        (lambda: NbdServer("1st"), "server name '1st'"),
        (lambda: Neighbour(""), "neighbour name ''"),
        (lambda: NbdServer("s", size="512X"), "s: size: '512X' is not a size"),
        (lambda: NbdServer("s", size=0), "s: size: a size must be more than 0"),
        (lambda: NbdServer("s", program="inetd"), "s: program must be one of builtin, nbdkit, nbd-server, qemu-nbd"),
        (lambda: SwapClient("c", swap=wrong("s")), "c: swap must be an NbdServer"),
        (lambda: SwapClient("c", NbdServer("s"), memory="lots"), "c: memory: 'lots' is not a size"),
        (lambda: SwapClient("c", NbdServer("s"), ring=4), "c: ring must be a whole number from 8 to 4096, not 4"),
        (lambda: SwapClient("c", NbdServer("s"), min_free_kbytes=0), "c: min_free_kbytes must be"),
        (lambda: SwapClient("c", NbdServer("s"), mtu=100), "c: mtu must be"),
        (lambda: SwapClient("c", NbdServer("s"), driver=wrong("e1000")), "c: driver must be one of linear, vector"),
        (lambda: SwapClient("c", NbdServer("s"), copybreak=1025), "c: copybreak must be a whole number from 0 to 1024"),
        (lambda: SwapClient("c", NbdServer("s"), tap="0"), "c: tap: a size must be more than 0"),
        (lambda: SwapClient("c", NbdServer("s"), bystanders=[wrong("a")]), "c: bystanders must be Bystander objects"),
        (
            lambda: SwapClient("c", NbdServer("s"), virtual_machines=[wrong("vm")]),
            "c: virtual_machines must be VirtualMachine objects",
        ),
        (lambda: VirtualMachine("vm", reader=wrong("corked")), "vm: reader must be one of prompt, faulting, never"),
        (lambda: VirtualMachine("v m"), "virtual machine name 'v m'"),
        (lambda: VirtualMachine("vm", tx_queue_len=0), "vm: tx_queue_len must be a whole number from 1 to"),
        (lambda: Bystander(reader=wrong("sometimes")), "bystander: reader must be one of prompt, fau"),
        (lambda: Bystander(protocol=wrong("sctp")), "bystander: protocol must be one of udp, tcp"),
        (lambda: Bystander(protocol="tcp", reader="corked"), "bystander: only UDP has UDP_CORK"),
        (lambda: TcpStream(bytes_per_second=0), "tcp_stream: bytes_per_second"),
        (lambda: TcpStream(start=wrong("later")), "tcp_stream: start must be one of"),
        (lambda: SwapClient("c", NbdServer("s"), udp_mem=(3, 2, 1)), "c: udp_mem must be three rising numbers"),
        (lambda: SwapClient("c", NbdServer("s"), tcp_mem=wrong((1, 2))), "c: tcp_mem must be three rising numbers"),
        (lambda: SwapClient("c", NbdServer("s"), neighbour_timeout=0), "c: neighbour_timeout must be from 0.01"),
        (lambda: SwapClient("c", NbdServer("s"), nbd_timeout=0), "c: nbd_timeout must be from 0.01 to 3600 s"),
        (lambda: SwapClient("c", NbdServer("s"), nbd_dead_conn_timeout=-1), "c: nbd_dead_conn_timeout must be from"),
        (lambda: SwapClient("c", NbdServer("s"), nbd_connections=0), "c: nbd_connections must be a whole number"),
        (lambda: NbdServer("s", same_host=True, cache=wrong("full")), "s: cache must be one of writeback, none"),
        (lambda: NbdServer("s", cache="none"), "s: cache and realtime are for a server with same_host=True"),
        (lambda: NbdServer("s", realtime=True), "s: cache and realtime are for a server with same_host=True"),
        (lambda: Bystander(count=0), "bystander: count must be"),
        (lambda: Bystander(port=70000), "bystander: port must be"),
        (lambda: UdpFlood(pps=0), "udp flood: pps must be"),
        (lambda: UdpFlood(pps=wrong(1.5)), "udp flood: pps must be"),
        (lambda: UdpFlood(size=63), "udp flood: size must be"),
        (lambda: UdpFlood(start=wrong("later")), "udp flood: start must be one of swapping, workload"),
        (lambda: UdpFlood(sockets=0), "udp flood: sockets must be"),
        (lambda: VlanUdpFlood(vlan=4095), "vlan_udp flood: vlan must be"),
        (lambda: EtherTypeFlood(ethertype=5), "ethertype flood: ethertype must be"),
        (lambda: TcpSynFlood(port=0), "tcp_syn flood: port must be"),
        (Flood, "a flood needs a kind"),
        (lambda: LinearTouch(processes=0), "workload: processes must be"),
        (lambda: LinearTouch(passes=True), "workload: passes must be"),
        (lambda: LinearTouch(total="0"), "workload: total: a size must be more than 0"),
        (lambda: LinearTouch(mempolicy="default"), "workload: mempolicy: 'default' is no memory policy"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(mistake: Callable[[], Any], line: str) -> None:
    with pytest.raises(TopologyError) as raised:
        mistake()
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


class Parts:
    """A small topology, and the pieces to spoil it with."""

    def __init__(self) -> None:
        self.topology = Topology("parts")
        self.server = self.topology.add(NbdServer("server"))
        self.machine = VirtualMachine("guest")
        self.client = self.topology.add(SwapClient("client", swap=self.server, virtual_machines=[self.machine]))
        self.noise = self.topology.add(Neighbour("noise"))
        self.local = self.topology.add(NbdServer("local", same_host=True))


@pytest.mark.parametrize(
    ("mistake", "line"),
    [
        (lambda p: p.topology.add(Neighbour("client")), "parts: two hosts are named 'client'"),
        (lambda p: p.topology.add("host"), "parts: 'host' is not a host"),
        (
            lambda p: p.topology.add(SwapClient("c", p.server, virtual_machines=[VirtualMachine("noise")])),
            "parts: two hosts are named 'noise'",
        ),
        (
            lambda p: p.topology.add(SwapClient("c", p.server, virtual_machines=[VirtualMachine("c")])),
            "parts: two hosts are named 'c'",
        ),
        (lambda p: p.topology.flood(p.noise, p.machine, ArpFlood()), "guest: no arp goes to a virtual machine alone"),
        (lambda p: p.topology.flood(p.noise, p.machine, TcpStream()), "guest: no tcp_stream goes to a virtual"),
        (
            lambda p: p.topology.flood(p.noise, VirtualMachine("ghost"), UdpFlood()),
            "parts: a flood goes to a SwapClient, not 'ghost'",
        ),
        (
            lambda p: p.topology.add(SwapClient("other", swap=NbdServer("elsewhere"))),
            "other: its swap server 'elsewhere' is not in the topology",
        ),
        (lambda p: p.topology.connect(p.server), "parts: connect needs at least two hosts"),
        (lambda p: p.topology.connect(p.server, Neighbour("stranger")), "parts: 'stranger' is not in the topology"),
        (lambda p: p.topology.connect(p.local, p.noise), "local: it is on its client's machine, and has no interface"),
        (lambda p: p.topology.link(p.server, p.server), "parts: a host cannot be connected to itself"),
        (
            lambda p: (p.topology.link(p.server, p.client), p.topology.connect(p.client, p.noise)),
            "client: it is connected already",
        ),
        (lambda p: p.topology.workload(p.noise, LinearTouch()), "parts: a workload runs on a SwapClient, not 'noise'"),
        (lambda p: p.topology.workload(p.client, 3), "client: 3 is not a workload"),
        (
            lambda p: [p.topology.workload(p.client, LinearTouch()) for _ in range(2)],
            "client: it has a workload already",
        ),
        (
            lambda p: p.topology.flood(p.noise, p.server, ArpFlood()),
            "parts: a flood goes to a SwapClient, not 'server'",
        ),
        (lambda p: p.topology.flood(p.client, p.client, ArpFlood()), "parts: a flood comes from a Neighbour"),
        (lambda p: p.topology.flood(p.noise, p.client, "rain"), "noise: 'rain' is not a flood"),
        (
            lambda p: p.topology.flood(p.noise, SwapClient("ghost", p.server), ArpFlood()),
            "parts: 'ghost' is not in the topology",
        ),
    ],
)
def test_a_bad_connection_is_one_line_too(mistake: Callable[[Parts], Any], line: str) -> None:
    with pytest.raises(TopologyError) as raised:
        mistake(Parts())
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_a_bandwidth_is_a_size() -> None:
    assert NbdServer("server", bandwidth="32M").bandwidth == "32M"
    with pytest.raises(TopologyError, match="bandwidth"):
        NbdServer("server", bandwidth="fast")
