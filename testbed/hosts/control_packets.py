"""Memory for the small packets that a stack sends by itself: acknowledgements, resets, ARP and ICMP replies."""

from __future__ import annotations

from testbed.net.dev import NetDevice
from testbed.net.sock import Sock
from testbed.net.tcp_output import send_control_packets


def transmit_control(device: NetDevice, count: int, sk: Sock | None) -> bool:
    """Do `count` control packets of `sk` (None: of the stack itself) find memory?

    An ACK for data that lay in reserve memory is sent with PF_MEMALLOC.
    """
    device.softirq.pf_memalloc = sk is not None and device.last_pfmemalloc and device.switches.receive_pf_memalloc
    sent = send_control_packets(count, sk, device.skb_memory, device.socket_memory, device.softirq)
    device.softirq.pf_memalloc = False
    if not sent:
        device.netstat.tx_skb_alloc_failed += count
    return sent > 0
