"""The `Edge` of a simulated client: a NIC on the simulated switch, and simulated sockets behind the model.

A group of frames is received as it arrives. What the model lets through goes to the sockets: datagrams to their
readers, segments to TCP, which acknowledges them if the model has the memory for that. The rest is lost.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from testbed.hosts.bystander import UdpSocket
from testbed.hosts.classifier import IPPROTO_ICMP, IPPROTO_TCP, IPPROTO_UDP, stack_name
from testbed.hosts.control_packets import ARP_REQUEST, OTHER, REPLY, SWAP_CONTROL, SWAP_RETRANSMIT, ControlPackets
from testbed.hosts.emulated_client import EmulatedClient
from testbed.hosts.nbd_sock import SwapSocket
from testbed.mm.bio import UnlimitedBioSet
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client import NbdClient
from testbed.nbd.client_handshake import ClientHandshake, ExportInformation
from testbed.net.dev import DELIVERED, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, HeldFrame, Kind, RxBatch
from testbed.net.drop_reason import DropReason
from testbed.net.sock import Sock
from testbed.simulation.arp import ARP, ServerNeighbour, arp_frame
from testbed.simulation.datagrams import Datagrams, DatagramSocket
from testbed.simulation.handshake import Opening, SimulatedListener
from testbed.simulation.link import Frames, LinkSpeed, Port
from testbed.simulation.nbd_client import SimulatedNbdClient
from testbed.simulation.reduced import ReducedNbdClient
from testbed.simulation.segments import Connection, Segments
from testbed.simulation.server import SimulatedServer
from testbed.simulation.stream_socket import StreamSocket
from testbed.simulation.virtual_time import VirtualTimeLoop

TRAIN = 44
"""Segments that travel together: 64 KiB, as with segmentation offload; the model decides about each all the same."""
TCP_HEADERS = 20 + 20 + 12
"""Of IPv4 and of TCP with timestamps, bytes."""
SETTLE_S = 0.05
ANSWERED = frozenset({ARP.name, stack_name(ETH_P_IP, IPPROTO_ICMP), stack_name(ETH_P_IP, IPPROTO_TCP)})
"""What the stack itself answers one for one: ARP requests, echo requests, connection requests to a closed port."""


CLOSED = Kind(ETH_P_IP, None, stack_name(ETH_P_IP, IPPROTO_TCP))
"""A segment of a connection that is no more."""


@dataclass(slots=True)
class SimulatedStream:
    """A connection: TCP's end of it, whose its segments are, and whether the queue knows the stream's offsets.

    `swap` says whether it is one of the swap area's; the others are `accepted` once their SYN has got through.
    """

    socket: StreamSocket
    kind: Kind
    swap: bool = True
    offsets_known: bool = False
    accepted: bool = False


class SimulatedEdge:
    """A client's place in a simulated network, with its swap area on `server`."""

    def __init__(self, loop: VirtualTimeLoop, speed: LinkSpeed, server: SimulatedServer) -> None:
        self.port = Port(speed, self._receive)
        self._loopback = Port(speed, self._receive_loopback)
        self.received = 0
        self.lost = 0
        self._loop = loop
        self._server = server
        self._sockets: dict[int, DatagramSocket] = {}
        self._by_kind: dict[str, DatagramSocket] = {}
        self._listeners: dict[int, SimulatedListener] = {}
        self._streams: dict[Connection, SimulatedStream] = {}
        self._neighbour: ServerNeighbour | None = None
        self._taking = False
        self._handed_on = 0
        self._stack_frames = 0

    @property
    def tx_dropped(self) -> int:
        """Frames that the host's own side dropped: what waited in vain for the server's address."""
        return 0 if self._neighbour is None else self._neighbour.discarded

    def udp_socket(self, address: str, port: int, rcvbuf: int) -> UdpSocket:
        """A simulated UDP socket; it has room for everything."""
        made = self._sockets[port] = DatagramSocket(self._loop)
        return cast(UdpSocket, made)

    def tcp_listener(self, address: str, port: int, rcvbuf: int) -> socket.socket:
        """A simulated listening socket; the model alone limits what its connections take."""
        made = self._listeners[port] = SimulatedListener(self._loop)
        return cast(socket.socket, made)

    def attach(self, client: EmulatedClient) -> None:
        """Let frames into the model.

        To scan and write costs no time here: of bios that take memory kswapd would make more, with every page above
        min, before the server has answered once.
        """
        self._client = client
        client.node.swap_io.bio_set = UnlimitedBioSet()
        self._control = ControlPackets(client.netdev, client.ledger)
        client.netdev.pass_on = self._pass_on
        if client.plan.neighbour_timeout is not None:
            self._neighbour = ServerNeighbour(client.plan.neighbour_timeout, self._put_on_wire, self._ask)
        self._by_kind = {bystander.sk.name: self._sockets[bystander.port] for bystander in client.sockets}
        self._taking = True

    def kinds(self, flood: str, ports: tuple[int, ...], ethertype: int | None, mac: str) -> tuple[Kind, ...]:
        """What the frames of a kind of flood are here, one for each of `ports`; nothing if this host is not meant.

        `mac` is the address they are sent to: this host's own, or that of a virtual machine on it.
        """
        protocol, ip_protocol = {
            "udp": (ETH_P_IP, IPPROTO_UDP),
            "vlan_udp": (ETH_P_IP, IPPROTO_UDP),
            "ipv6_udp": (ETH_P_IPV6, 0),
            "tcp_syn": (ETH_P_IP, IPPROTO_TCP),
            "icmp": (ETH_P_IP, IPPROTO_ICMP),
            "arp": (ETH_P_ARP, 0),
            "ethertype": (ethertype or 0, 0),
        }[flood]
        for machine in self._client.virtual_machines:
            if machine.plan.interface.mac == mac:
                return (Kind(protocol, machine.tun, machine.tun.name),)
        if flood == "vlan_udp":
            return ()
        if flood == "udp":
            return tuple(self._udp_kind(port) for port in ports)
        return (Kind(protocol, None, stack_name(protocol, ip_protocol), broadcast=flood == "arp"),)

    def _udp_kind(self, port: int) -> Kind:
        for bystander in self._client.sockets:
            if bystander.port == port:
                return Kind(ETH_P_IP, bystander.sk, bystander.sk.name)
        return Kind(ETH_P_IP, None, stack_name(ETH_P_IP, IPPROTO_UDP))

    async def connect(self, swap_socket: SwapSocket) -> NbdClient:
        """Connect and shake hands. Raises LabError when the server refuses."""
        plan = self._client.plan
        sock = self._connect(swap_socket)
        handshake = ClientHandshake(plan.swap.export)
        readable = asyncio.Event()
        self._loop.add_reader(sock.fileno(), readable.set)
        buffer = memoryview(bytearray(4096))
        found = None
        while not handshake.finished:
            await readable.wait()
            readable.clear()
            for event in handshake.received(bytes(buffer[: sock.recvmsg_into([buffer])[0]])):
                found = event if isinstance(event, ExportInformation) else found
            sock.send(handshake.data_to_send())
        self._loop.remove_reader(sock.fileno())
        assert found is not None
        kind = SimulatedNbdClient if self._client.page_bytes == PAGE_SIZE else ReducedNbdClient
        return kind(cast(socket.socket, sock), found)

    def _connect(self, swap_socket: SwapSocket) -> StreamSocket:
        plan, server = self._client.plan, self._server
        mss = plan.interface.mtu - TCP_HEADERS
        train = mss * TRAIN
        room = partial(_window, swap_socket.sk)
        same_host = plan.swap.same_host is not None
        to_server = server.port.down.send if same_host else self._transmit
        to_client = self._loopback.down.send if same_host else server.port.up.send

        def accept(number: int) -> StreamSocket:
            stream = StreamSocket(
                *(self._loop, to_server, server.port, number),
                mss=mss,
                train=train,
                window=room,
                may_acknowledge=partial(self._may_send, SWAP_CONTROL),
                may_retransmit=partial(self._may_send, SWAP_RETRANSMIT),
            )
            self._streams[number] = SimulatedStream(stream, Kind(ETH_P_IP, swap_socket.receive_queue, "swap"))
            return StreamSocket(
                *(self._loop, to_client, self.port, number), mss=mss, train=train, first_window=room()
            )

        return self._streams[server.accept(plan.swap, accept)].socket

    def _may_send(self, kind: int, count: int) -> bool:
        return self._taking and self._control.has_memory(kind, count)

    def _transmit(self, group: Segments) -> None:
        if self._neighbour is None:
            self._put_on_wire(group)
        else:
            self._neighbour.send(group)

    def _put_on_wire(self, group: Frames) -> None:
        self._client.netstat.tx_packets += group.frames
        self.port.up.send(group)

    def _ask(self) -> None:
        """Send an ARP request for the server's address, if there is memory for it."""
        if self._may_send(ARP_REQUEST, 1):
            self._put_on_wire(arp_frame(self.port, self._server.port))

    def swapon(self, nbd: NbdClient, swap_socket: SwapSocket) -> None:
        """Tell the receive queue how far the stream has come."""
        stream = self._stream_of(nbd)
        swap_socket.receive_queue.copied_seq = stream.socket.bytes_received
        stream.offsets_known = True
        self._control.swap_sk = swap_socket.sk

    def disconnect(self, nbd: NbdClient) -> None:
        """Take no more segments of the connection."""
        stream = self._stream_of(nbd)
        self._streams = {number: other for number, other in self._streams.items() if other is not stream}

    def _stream_of(self, nbd: NbdClient) -> SimulatedStream:
        return next(stream for stream in self._streams.values() if stream.socket is cast(object, nbd.sock))

    def _receive(self, group: Frames) -> None:
        """A group arrives; what comes after the machine has stopped is lost."""
        if not self._taking:
            self.lost += group.frames
            return
        self.received += group.frames
        if isinstance(group, Segments):
            self._segments(group)
        elif isinstance(group, Opening):
            self._opening(group)
        elif isinstance(group, Datagrams):
            self._datagrams(group)

    def _receive_loopback(self, group: Frames) -> None:
        """From a server on this machine: no NIC has to find memory for it."""
        assert isinstance(group, Segments)
        stream = self._streams.get(group.connection)
        if stream is not None:
            stream.socket.received(group, [(group.seq, group.data)] if group.data else [], group.frames)
            if stream.offsets_known:
                self._client.device.tcp_ack()

    def _opening(self, syn: Opening) -> None:
        """A SYN from somebody else: with it the model's connection begins, and the reader's once it has got through."""
        stream = self._streams.get(syn.connection) or self._begin(syn)
        batch = RxBatch.of_kinds(np.zeros(1, np.intp), [CLOSED if stream is None else stream.kind])
        batch.end_seq = [0]
        self._client.netdev.receive(batch)
        for held in batch.held.values():
            held.data = partial(self._accept, syn, stream)
        self._accept(syn, stream, [batch.verdicts[0] == DELIVERED])

    def _begin(self, syn: Opening) -> SimulatedStream | None:
        """The connection that a SYN asks for; None if nobody listens."""
        for listener in self._client.listeners:
            if listener.port == syn.port:
                break
        else:
            return None
        address, port = syn.peer
        queue = listener.connection_request((int.from_bytes(socket.inet_aton(address), "big"), port))
        mss = self._client.plan.interface.mtu - TCP_HEADERS
        tcp = StreamSocket(
            *(self._loop, self._put_on_wire, syn.source, syn.connection),
            mss=mss,
            train=mss * TRAIN,
            window=partial(_window, queue.sk),
            may_acknowledge=partial(self._may_send, OTHER),
            may_retransmit=partial(self._may_send, OTHER),
        )
        stream = SimulatedStream(tcp, Kind(ETH_P_IP, queue, listener.name), swap=False, offsets_known=True)
        self._streams[syn.connection] = stream
        return stream

    def _accept(self, syn: Opening, stream: SimulatedStream | None, kept: list[bool]) -> None:
        """If the SYN has got through: let the reader have the connection, and answer as far as there is memory."""
        self._handed_on += sum(kept)
        self._stack_frames += sum(kept)
        if stream is None or not any(kept):
            return
        if not stream.accepted:
            stream.accepted = True
            self._listeners[syn.port].put(stream.socket, syn.peer)
        if self._may_send(OTHER, 1):
            self._put_on_wire(syn.answer(stream.socket.receiver.advertise()))

    def _segments(self, group: Segments) -> None:
        stream = self._streams.get(group.connection)
        kind = CLOSED if stream is None else stream.kind
        count = 1 if group.data else group.copies
        batch = RxBatch.of_kinds(np.zeros(count, np.intp), [kind])
        known = stream is not None and stream.offsets_known
        batch.end_seq = [group.seq + len(group.data) if group.data and known else 0] * count
        if group.data:
            batch.segments, batch.gso_size = [group.frames], [group.mss]
        self._client.netdev.receive(batch)
        for held in batch.held.values():
            held.data = partial(self._to_stream, group)
        if group.data:
            self._to_stream(group, batch.cut.get(0) or [batch.verdicts[0] == DELIVERED] * group.frames)
        else:
            self._to_stream(group, [verdict == DELIVERED for verdict in batch.verdicts])

    def _to_stream(self, group: Segments, kept: list[bool]) -> None:
        """Those segments that were `kept` go to TCP."""
        delivered = sum(kept)
        self._handed_on += delivered
        if not delivered:
            return
        self._stack_frames += delivered
        stream = self._streams.get(group.connection)
        if stream is None:
            return
        runs = [] if not group.data else [(group.seq, group.data)] if all(kept) else group.runs(kept)
        acknowledged_as = 1 if self._client.plan.gso else delivered
        if not group.data and delivered < group.copies:
            group = group.first(delivered)
        unacknowledged = stream.socket.sender.snd_una
        stream.socket.received(group, runs, acknowledged_as)
        if not stream.swap:
            return
        if self._neighbour is not None and stream.socket.sender.snd_una > unacknowledged:
            self._neighbour.confirm()
        if stream.offsets_known:
            self._client.device.tcp_ack()

    def _datagrams(self, group: Datagrams) -> None:
        if not group.kinds:
            self._client.ledger.tally({(int(DropReason.OTHERHOST), "other host", False): group.frames})
            return
        batch = RxBatch.of_kinds(group.codes, list(group.kinds))
        self._client.netdev.receive(batch)
        for index, held in batch.held.items():
            held.data = partial(self._to_socket, group.kinds[group.codes[index]].name)
        delivered = group.codes[np.array(batch.verdicts) == DELIVERED]
        self._handed_on += len(delivered)
        for kind, count in zip(group.kinds, np.bincount(delivered, minlength=len(group.kinds)).tolist(), strict=True):
            if not count:
                continue
            if isinstance(kind.receiver, Sock):
                self._by_kind[kind.name].put(count)
            else:
                self._answer(kind, count, group)

    def _to_socket(self, name: str, kept: list[bool]) -> None:
        """A datagram has left the backlog."""
        self._handed_on += sum(kept)
        self._by_kind[name].put(sum(kept))

    def _pass_on(self, held: HeldFrame) -> None:
        held.data(held.kept)

    def _answer(self, kind: Kind, count: int, group: Datagrams) -> None:
        """The stack itself takes frames, and answers those that ask for it."""
        self._stack_frames += count
        if self._neighbour is not None and kind == ARP and group.source is self._server.port:
            self._neighbour.answered()
        elif kind.name in ANSWERED and self._control.has_memory(REPLY, count):
            answers = Datagrams(self.port, group.source, group.frame_size, np.zeros(count, np.intp), ())
            self._put_on_wire(answers)

    async def drain(self) -> None:
        """Wait for the frames that are on their way."""
        await asyncio.sleep(SETTLE_S)

    def interfaces(self) -> dict[str, int]:
        """Frames as the link and the sockets count them, and as the NIC and the model do."""
        return {
            "wire_rx_packets": self.port.down.delivered,
            "wire_received": self.received,
            "tp_drops": self.lost,
            "inner_rx_packets": self._stack_frames + sum(socket.arrived for socket in self._sockets.values()),
            "inner_delivered": self._handed_on,
        }

    def detach(self) -> None:
        """Take no more frames."""
        self._taking = False
        if self._neighbour is not None:
            self._neighbour.close()


def _window(sk: Sock) -> int:
    """What the model's receive buffer has room for: half of its bytes are for data (tcp_adv_win_scale)."""
    return max(0, sk.rcvbuf - sk.rmem_alloc) // 2
