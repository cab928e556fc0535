"""Network counters under the kernel's names (/proc/net/snmp, /proc/net/netstat, ethtool), plus a few of the model's."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(slots=True)
class NetStat:
    """Counts of one host. Frames are counted as they would be on the wire: a GSO frame is its segments."""

    rx_packets: int = 0
    """Frames that found a buffer and went up the stack."""
    rx_missed: int = 0
    """Frames that found no descriptor with a buffer."""
    rx_dropped: int = 0
    """Frames of a protocol that nobody handles, or (patch 12) that may not use the reserve."""
    alloc_rx_buff_failed: int = 0
    """Refills that could not allocate a buffer."""
    alloc_rx_page_failed: int = 0
    """Requests of a driver for pages to receive into of which not all could be had."""
    alloc_rx_buff: int = 0
    PFMemallocDrop: int = 0
    InDatagrams: int = 0
    InErrors: int = 0
    RcvbufErrors: int = 0
    MemErrors: int = 0
    """Datagrams beyond udp_mem."""
    TCPRcvQDrop: int = 0
    """Segments beyond a TCP socket's receive buffer, or beyond tcp_mem."""
    TCPBacklogDrop: int = 0
    """Segments that found neither their socket free nor room in its backlog."""
    rx_skb_pfmemalloc: int = 0
    """Receive buffers whose data came from the reserve (patch 09)."""
    rx_skb_reserve_refused: int = 0
    """Receive buffers that failed where patch 09 would have tried the reserve."""
    skb_frag_pfmemalloc: int = 0
    """Fragments of the reserve that were attached to an skb and marked it (patch 10)."""
    skb_frag_unmarked: int = 0
    """Fragments of the reserve that were attached with patch 10 off."""
    netdev_page_pfmemalloc: int = 0
    """Pages of the reserve that a driver received into (patch 11)."""
    netdev_page_reserve_refused: int = 0
    """Of these, the ones for which patch 11 would have tried the reserve."""
    receive_pf_memalloc: int = 0
    """Skbs processed with PF_MEMALLOC set (patch 12)."""
    receive_pf_memalloc_skipped: int = 0
    """Skbs in reserve memory processed without PF_MEMALLOC because patch 12 is off."""
    tap_skipped: int = 0
    sk_set_memalloc: int = 0
    sk_set_memalloc_missing: int = 0
    sk_allocation_memalloc: int = 0
    """Times that sk_allocation() added __GFP_MEMALLOC to a request (patch 07)."""
    sk_allocation_missing: int = 0
    tx_skb_alloc_failed: int = 0
    """Frames the stack wanted to send that found no memory for their skb (an ACK, an ARP or ICMP reply)."""
    RetransSegs: int = 0
    """Segments of the swap connection that were to be sent again."""
    TCPRetransFail: int = 0
    """Those of them that found no memory for their clone."""
    arp_solicits: int = 0
    """ARP requests that the stack wanted to send."""
    tx_packets: int = 0

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}
