"""What the real stack wants to send, frame by frame, in the kinds of `control_packets`.

That data of the swap connection is sent again shows in its sequence numbers: they do not go beyond what was sent
before.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from testbed.hosts.classifier import FEW, IPPROTO_ICMP, IPPROTO_TCP, column
from testbed.hosts.control_packets import ARP_REQUEST, OTHER, REPLY, SWAP_CONTROL, SWAP_DATA, SWAP_RETRANSMIT
from testbed.lab.packet_ring import FrameBlock
from testbed.net.dev import ETH_P_ARP, ETH_P_IP

ARP_OPERATION_AT, ICMP_TYPE_AT, TCP_FLAGS_AT = 21, 34, 47
"""Offsets in a frame, of the low byte where a field has two."""
ARPOP_REQUEST = 1
ICMP_ECHOREPLY = 0
TCP_RST = 0x04


class Outgoing:
    """Tells outgoing frames apart. `layout` is the classifier's, `server_port` the swap server's.

    Only the ports that are attached are the kernel's own connections to it: what a program sends that opens one, or
    that is left of one, is as anybody's.
    """

    def __init__(self, layout: struct.Struct, server_port: int) -> None:
        self._layout = layout
        self._server_port = server_port
        self._snd_nxt: dict[int, int | None] = {}

    def attach(self, port: int) -> None:
        """From now on our `port` is a swap connection's."""
        self._snd_nxt[port] = None

    def disconnect(self, port: int) -> None:
        """It is no more."""
        self._snd_nxt.pop(port, None)

    def kinds(self, block: FrameBlock) -> list[int]:
        """What each frame of the block is."""
        return self.few(block) if block.count <= FEW else self.many(block)

    def few(self, block: FrameBlock) -> list[int]:
        """`kinds` frame by frame."""
        kinds = []
        for index, fields in enumerate(block.unpacked(self._layout)):
            _, _, _, _, _, _, protocol, total, ip_protocol, _, ports, seq, offset, flags = fields
            swap = protocol == ETH_P_IP and ip_protocol == IPPROTO_TCP and ports & 0xFFFF == self._server_port
            if swap and ports >> 16 in self._snd_nxt:
                size = total - 20 - (offset >> 4 << 2)
                kinds.append(self._swap_data(ports >> 16, seq, size) if size > 0 else SWAP_CONTROL)
            else:
                operation = block.headers[index, ARP_OPERATION_AT] if protocol == ETH_P_ARP else 0
                kinds.append(_stack_frame(protocol, int(operation), ip_protocol, ports >> 24, flags))
        return kinds

    def many(self, block: FrameBlock) -> list[int]:
        """`kinds` by columns."""
        headers = block.headers
        protocols, ip_protocols = column(headers, 12, ">u2"), headers[:, 23]
        swap = (protocols == ETH_P_IP) & (ip_protocols == IPPROTO_TCP)
        swap &= column(headers, 36, ">u2") == self._server_port
        size = column(headers, 16, ">u2").astype(np.int64) - 20 - ((headers[:, 46] >> 4).astype(np.int64) << 2)
        seq = column(headers, 38, ">u4").astype(np.int64)
        kinds = np.full(block.count, OTHER)
        ours = column(headers, 34, ">u2")
        attached = np.zeros(block.count, np.bool_)
        for port in self._snd_nxt:
            mine = swap & (ours == port)
            attached |= mine
            kinds[mine] = SWAP_CONTROL
            data = mine & (size > 0)
            if data.any():
                kinds[data] = self._swap_data_columns(port, seq[data], size[data])
        for index in np.flatnonzero(~attached).tolist():
            row = headers[index]
            operation, icmp_type, flags = (int(row[at]) for at in (ARP_OPERATION_AT, ICMP_TYPE_AT, TCP_FLAGS_AT))
            kinds[index] = _stack_frame(int(protocols[index]), operation, int(ip_protocols[index]), icmp_type, flags)
        found: list[int] = kinds.tolist()
        return found

    def _swap_data(self, port: int, seq: int, size: int) -> int:
        snd_nxt = self._snd_nxt[port]
        base = seq if snd_nxt is None else snd_nxt
        ahead = ((seq + size - base + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
        if ahead <= 0:
            return SWAP_RETRANSMIT
        self._snd_nxt[port] = (seq + size) & 0xFFFFFFFF
        return SWAP_DATA

    def _swap_data_columns(
        self, port: int, seq: npt.NDArray[np.int64], size: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        snd_nxt = self._snd_nxt[port]
        base = int(seq[0]) if snd_nxt is None else snd_nxt
        ahead = ((seq + size - base + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
        highest = np.maximum.accumulate(np.maximum(ahead, 0))
        self._snd_nxt[port] = (base + int(highest[-1])) & 0xFFFFFFFF
        return np.where(ahead > np.concatenate(([0], highest[:-1])), SWAP_DATA, SWAP_RETRANSMIT)


def _stack_frame(protocol: int, operation: int, ip_protocol: int, icmp_type: int, flags: int) -> int:
    """What a frame that is not the swap connection's is."""
    if protocol == ETH_P_ARP:
        return ARP_REQUEST if operation == ARPOP_REQUEST else REPLY
    if protocol != ETH_P_IP:
        return OTHER
    echo = ip_protocol == IPPROTO_ICMP and icmp_type == ICMP_ECHOREPLY
    return REPLY if echo or (ip_protocol == IPPROTO_TCP and flags & TCP_RST) else OTHER
