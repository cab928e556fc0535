"""Tells whose a received frame is, a whole block at a time: columns of the frames' headers, compared with numpy.

Frames for the stack itself (ARP, ICMP, a port nobody listens on) have no receiver; they get a name all the same,
which is what the ledger files them under.
"""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import numpy.typing as npt

from testbed.lab.packet_ring import FrameBlock
from testbed.net.dev import ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Kind, RxBatch
from testbed.net.sock import Sock
from testbed.net.tcp_input import TcpReceiveQueue

IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP = 1, 6, 17
TCP_SYN_ACK = 0x12
OTHERHOST = -1
STACK = 0
SWAP = 1
ETHERNET_IPV4_TCP = 14 + 20

Codes = npt.NDArray[np.int64]


class Classifier:
    """Finds the receivers of frames.

    Args:
        mac: the client's own MAC address.
        server: IPv4 address and port of the swap server.
        swap_queue: the receive queue of the swap connection.
        sockets: datagram sockets by UDP port.
    """

    def __init__(
        self, mac: str, server: tuple[str, int], swap_queue: TcpReceiveQueue, sockets: dict[int, Sock], *, gso: bool
    ) -> None:
        octets = bytes.fromhex(mac.replace(":", ""))
        self._mac_high = int.from_bytes(octets[:2], "big")
        self._mac_low = int.from_bytes(octets[2:], "big")
        self._server = int.from_bytes(socket.inet_aton(server[0]), "big")
        self._server_port = server[1]
        self._swap_queue = swap_queue
        self._gso = gso
        self._kinds = [Kind(ETH_P_IP, None, "ip"), Kind(ETH_P_IP, swap_queue, "swap")]
        self._kinds += [Kind(ETH_P_IP, sk, sk.name) for sk in sockets.values()]
        self._stack_kinds: dict[tuple[int, int], int] = {}
        self._udp_code = np.zeros(65536, np.int64)
        for code, port in enumerate(sockets, start=2):
            self._udp_code[port] = code
        self._first_seq: int | None = None
        self.attached = False
        """Whether the swap connection's stream offsets are known to the receive queue yet."""

    def classify(self, block: FrameBlock) -> tuple[RxBatch, npt.NDArray[np.bool_] | None]:
        """The block as the receive path wants it, and which frames are for another host (None: none are)."""
        headers = block.headers
        protocols = column(headers, 12, ">u2")
        addressed = self._addressed(headers, block)
        ip_protocol = headers[:, 23]
        is_ip = protocols == ETH_P_IP
        codes: Codes = np.where(is_ip & (ip_protocol == IPPROTO_UDP), self._udp_code[column(headers, 36, ">u2")], STACK)
        swap = is_ip & (ip_protocol == IPPROTO_TCP) & (column(headers, 34, ">u2") == self._server_port)
        has_swap = bool(swap.any())
        if has_swap:
            swap &= column(headers, 26, ">u4") == self._server
            codes[swap] = SWAP
        stack = codes == STACK
        if stack.any():
            codes[stack] = self._stack_codes(protocols[stack], np.where(is_ip, ip_protocol, 0)[stack])
        batch = self._batch(codes)
        if has_swap:
            self._add_tcp(batch, block, swap)
        return batch, None if addressed.all() else ~addressed

    def _stack_codes(self, protocols: Codes, ip_protocols: Codes) -> list[int]:
        """Codes of frames that are for the stack itself: one for each protocol that has been seen."""
        codes = []
        for key in zip(protocols.tolist(), ip_protocols.tolist(), strict=True):
            code = self._stack_kinds.get(key)
            if code is None:
                code = self._stack_kinds[key] = len(self._kinds)
                self._kinds.append(Kind(key[0], None, stack_name(*key)))
            codes.append(code)
        return codes

    def _batch(self, codes: Codes) -> RxBatch:
        """The frames with these codes, numbered among the kinds that occur."""
        first = int(codes[0])
        if (codes == first).all():
            return RxBatch.of_kinds(np.zeros(len(codes), np.intp), [self._kinds[first]])
        present, numbers = np.unique(codes, return_inverse=True)
        return RxBatch.of_kinds(numbers, [self._kinds[code] for code in present.tolist()])

    def _addressed(self, headers: npt.NDArray[np.uint8], block: FrameBlock) -> npt.NDArray[np.bool_]:
        mine: npt.NDArray[np.bool_] = column(headers, 2, ">u4") == self._mac_low
        mine &= column(headers, 0, ">u2") == self._mac_high
        mine |= (headers[:, 0] & 1).astype(np.bool_)
        mine &= ~block.vlan[1]
        return mine

    def _add_tcp(self, batch: RxBatch, block: FrameBlock, swap: npt.NDArray[np.bool_]) -> None:
        """Stream offsets, and how many wire frames each frame of the swap connection stands for."""
        headers = block.headers
        seq = column(headers, 38, ">u4").astype(np.int64)
        header = 20 + ((headers[:, 46] >> 4).astype(np.int64) << 2)
        payload = np.where(swap, column(headers, 16, ">u2").astype(np.int64) - header, 0)
        self._learn_first_seq(headers, seq, swap)
        if self.attached and self._first_seq is not None:
            copied = self._swap_queue.copied_seq
            expected = self._first_seq + copied
            ahead = ((seq + payload - expected + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
            batch.end_seq = np.where(payload > 0, copied + ahead, 0).tolist()
        else:
            batch.end_seq = [0] * block.count
        if self._gso:
            vnet = block.vnet
            size = column(vnet, 4, "<u2").astype(np.int64)
            whole = (vnet[:, 1] != 0) & (size > 0) & swap
            segments = np.where(whole, -(-payload // np.maximum(size, 1)), 1)
            batch.segments = np.maximum(segments, 1).tolist()
            batch.gso_size = size.tolist()

    def _learn_first_seq(self, headers: npt.NDArray[np.uint8], seq: Codes, swap: npt.NDArray[np.bool_]) -> None:
        if self._first_seq is None:
            opening = np.flatnonzero(swap & ((headers[:, 47] & TCP_SYN_ACK) == TCP_SYN_ACK))
            if len(opening):
                self._first_seq = int(seq[opening[0]]) + 1


def column(rows: npt.NDArray[np.uint8], offset: int, kind: str) -> npt.NDArray[Any]:
    """One header field of all frames: `kind` at byte `offset` of each row, (rows,) without a copy."""
    width = int(kind[-1])
    field: npt.NDArray[Any] = rows[:, offset : offset + width].view(kind)[:, 0]
    return field


def stack_name(protocol: int, ip_protocol: int) -> str:
    """What a frame without a socket is filed under."""
    if protocol == ETH_P_IP:
        return {IPPROTO_ICMP: "icmp", IPPROTO_TCP: "tcp", IPPROTO_UDP: "udp (no socket)"}.get(ip_protocol, "ip")
    return {ETH_P_ARP: "arp", ETH_P_IPV6: "ipv6", ETH_P_8021Q: "vlan"}.get(protocol, f"ethertype {protocol:#06x}")
