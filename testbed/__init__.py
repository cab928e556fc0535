"""Swap over the network under memory pressure, on emulated hosts with real sockets."""

from testbed.experiment.topology import (
    ArpFlood,
    Bystander,
    EtherTypeFlood,
    IcmpFlood,
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

__all__ = [
    "ArpFlood",
    "Bystander",
    "EtherTypeFlood",
    "IcmpFlood",
    "Ipv6UdpFlood",
    "LinearTouch",
    "NbdServer",
    "Neighbour",
    "SwapClient",
    "TcpStream",
    "TcpSynFlood",
    "Topology",
    "TopologyError",
    "UdpFlood",
    "VlanUdpFlood",
]
