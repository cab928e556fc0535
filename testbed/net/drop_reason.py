"""Where a received frame can end (what `kfree_skb_reason` is told, with the two ends before there is an skb)."""

from __future__ import annotations

from enum import IntEnum


class DropReason(IntEnum):
    """The one end of a frame. Everything but DELIVERED is a drop."""

    DELIVERED = 0
    PFMEMALLOC = 1
    """The skb lies in reserve memory and the socket is not SOCK_MEMALLOC (`sk_filter`, patch 09)."""
    UNHANDLED_PROTO = 2
    """No handler for the protocol, or (patch 12) not one that may use the reserve."""
    SOCKET_RCVBUFF = 3
    """The socket's receive buffer is full."""
    RX_MISSED = 4
    """No descriptor of the ring had a buffer: lost in the NIC."""
    OTHERHOST = 5
    """Addressed to another machine, or to a VLAN that this one is not on."""
    TX_NOMEM = 6
    """Outgoing: no memory for the skb."""
    RX_NOMEM = 7
    """No memory for the skb that a driver copies a short frame into."""
    SOCKET_BACKLOG = 8
    """A task owns the socket, and what waits for it is more than the socket may hold (`sk_add_backlog`)."""
    PROTO_MEM = 9
    """All sockets of the protocol together hold what udp_mem or tcp_mem allows (`sk_rmem_schedule`)."""
    FULL_RING = 10
    """For a virtual machine, whose tap's queue is full (`tun_net_xmit`)."""


SITES: dict[DropReason, str] = {
    DropReason.DELIVERED: "socket",
    DropReason.PFMEMALLOC: "sk_filter",
    DropReason.UNHANDLED_PROTO: "__netif_receive_skb",
    DropReason.SOCKET_RCVBUFF: "sock_queue_rcv_skb",
    DropReason.RX_MISSED: "rx_ring",
    DropReason.OTHERHOST: "eth_type_trans",
    DropReason.TX_NOMEM: "alloc_skb",
    DropReason.RX_NOMEM: "netdev_alloc_skb",
    DropReason.SOCKET_BACKLOG: "sk_add_backlog",
    DropReason.PROTO_MEM: "sk_rmem_schedule",
    DropReason.FULL_RING: "tun_net_xmit",
}
"""The place in the kernel that each end is named after."""
