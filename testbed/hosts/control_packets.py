"""What a host sends, and the memory for those frames that have none yet.

New data of the swap connection was paid for when it was queued, but to send it again takes a clone. Everything else
takes an skb when it is sent: acknowledgements, connection requests, resets, ARP and ICMP.
"""

from __future__ import annotations

from testbed.hosts.ledger import Ledger
from testbed.net.dev import NetDevice
from testbed.net.drop_reason import DropReason
from testbed.net.sock import Sock
from testbed.net.tcp_output import send_control_packets, tcp_retransmit_skb

SWAP_DATA, SWAP_CONTROL, SWAP_RETRANSMIT, ARP_REQUEST, REPLY, OTHER = range(6)
"""A reply is sent from the softirq that received what it answers."""
NAMES = ("swap data", "swap control", "swap retransmit", "arp request", "reply", "other")


class ControlPackets:
    """Asks for the memory of what goes out through `device`; `swap_sk` is a swap connection's socket, all being alike.
    """

    def __init__(self, device: NetDevice, ledger: Ledger) -> None:
        self.swap_sk: Sock | None = None
        self._device = device
        self._ledger = ledger

    def has_memory(self, kind: int, count: int) -> bool:
        """Do `count` frames of a kind find memory? What answers a frame in reserve memory is sent with PF_MEMALLOC."""
        if kind == SWAP_DATA:
            return True
        device, netstat = self._device, self._device.netstat
        answered = {SWAP_CONTROL: device.last_pfmemalloc, REPLY: device.stack_pfmemalloc}.get(kind, False)
        device.softirq.pf_memalloc = answered and device.switches.receive_pf_memalloc
        if kind == SWAP_RETRANSMIT:
            sent = tcp_retransmit_skb(count, device.skb_memory, netstat, device.softirq)
        else:
            sk = self.swap_sk if kind == SWAP_CONTROL else None
            netstat.arp_solicits += count if kind == ARP_REQUEST else 0
            sent = send_control_packets(count, sk, device.skb_memory, device.socket_memory, device.softirq)
        device.softirq.pf_memalloc = False
        if not sent:
            netstat.tx_skb_alloc_failed += count
            self._ledger.tally({(int(DropReason.TX_NOMEM), NAMES[kind], False): count})
        return sent > 0
