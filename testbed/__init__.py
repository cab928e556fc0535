"""Swap over the network under memory pressure, on emulated hosts with real sockets."""

import sys
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
    try:
        from testbed.experiment import topology
    except KeyboardInterrupt:
        if (script := _script()) is None:
            raise
        print(f"{script}: interrupted", file=sys.stderr)
        sys.exit(2)
    return getattr(topology, name)


def _script() -> str | None:
    """The topology script that this program is. One that has just begun cannot catch an interruption itself."""
    from pathlib import Path

    main = sys.modules["__main__"]
    file = Path(getattr(main, "__file__", None) or "")
    return file.name if main.__spec__ is None and file.suffix == ".py" else None
