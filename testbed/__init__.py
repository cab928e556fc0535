"""Swap over the network under memory pressure, on emulated hosts with real sockets."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
        VirtualMachine,
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
    "VirtualMachine",
    "VlanUdpFlood",
]


def __getattr__(name: str) -> object:
    """Import what a topology uses when it is asked for: the command must not wait for it before it can be stopped."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from testbed.experiment import topology

    return getattr(topology, name)
