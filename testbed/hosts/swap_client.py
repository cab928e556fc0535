"""The emulated swap client on a real network: one process that binds the models to real frames and real sockets.

It starts in the namespace of its NIC, where both veths end, opens the packet rings there, and then moves to its own
namespace, where its sockets are.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import socket
import struct
import time
from dataclasses import dataclass

from multiprocess.connection import Connection

from testbed.hosts.bystander import UdpSocket, udp_socket
from testbed.hosts.capturing_nic import CapturingNic
from testbed.hosts.classifier import Classifier
from testbed.hosts.emulated_client import EmulatedClient
from testbed.hosts.messages import Message, Shutdown
from testbed.hosts.nbd_sock import SwapSocket
from testbed.hosts.nic import Nic
from testbed.hosts.plan import CapturePlan, ClientPlan
from testbed.hosts.real_buffer import enlarge
from testbed.hosts.tcp_bystander import tcp_listener
from testbed.lab.capture import Capture
from testbed.lab.errors import LabError
from testbed.lab.link import interface_statistics
from testbed.lab.namespace import NetworkNamespace
from testbed.nbd.client import NbdClient, open_connection
from testbed.nbd.errors import NbdError

WIRE, INNER, HOST_INTERFACE = "wire0", "inner0", "eth0"
GC_THRESHOLDS = (50_000, 20, 100)
"""Pages and slabs make no cycles: the collector would walk hundreds of thousands of them for nothing."""
CONNECT_TIMEOUT = 10.0
DRAIN_TIMEOUT = 5.0
ACK_POLL_S = 0.002
REAL_SEND_BUFFER = 4 << 20
"""More than the model ever lets be queued, bytes."""
TCP_INFO_BYTES_RECEIVED = 128


@dataclass(frozen=True, slots=True)
class SwapClientSpec:
    """What the process needs: its part of the plan, the patches that are on, the seed, the host's own namespace.

    `capture` is for a client whose link is captured.
    """

    plan: ClientPlan
    patches: frozenset[int]
    seed: int
    host: NetworkNamespace
    capture: CapturePlan | None = None


def swap_client_main(channel: Connection, spec: SwapClientSpec) -> None:
    """The whole life of a swap client process; the caller has put it into the NIC's namespace."""
    nic = _nic(spec)
    spec.host.join()

    def say(message: Message) -> None:
        """`channel.send` takes a pickler written in Python, a millisecond for each sample."""
        channel.send_bytes(pickle.dumps(message))

    try:
        client = EmulatedClient(
            *(spec.plan, spec.patches, spec.seed, RealEdge(nic), say), cpu_clock=time.process_time
        )
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        asyncio.run(_run(client, channel))
    finally:
        nic.close()


def _nic(spec: SwapClientSpec) -> Nic:
    plan, asked = spec.plan, spec.capture
    if asked is None:
        return Nic(WIRE, INNER, gso=plan.gso)
    capture = Capture(asked.path, asked.snaplen, plan.name)
    return CapturingNic(WIRE, INNER, gso=plan.gso, capture=capture, watermarks=plan.watermarks)


async def _run(client: EmulatedClient, channel: Connection) -> None:
    asyncio.get_running_loop().add_reader(channel.fileno(), _obey, client, channel)
    await client.run()


def _obey(client: EmulatedClient, channel: Connection) -> None:
    try:
        client.obey(channel.recv())
    except EOFError:
        client.obey(Shutdown())


class RealEdge:
    """The `Edge` of a host with a NIC of packet rings and the kernel's own sockets; make it in the host's namespace."""

    def __init__(self, nic: Nic) -> None:
        self.nic = nic
        self._namespace = NetworkNamespace.current()
        self._inner_before = self._inner_packets()
        self._ack_timer: asyncio.TimerHandle | None = None

    @property
    def received(self) -> int:
        """Frames from the wire, a GSO frame being its segments."""
        return self.nic.wire_segments

    @property
    def lost(self) -> int:
        """Frames that the packet ring had no room for."""
        return self.nic.wire_ring.statistics()[1]

    @property
    def tx_dropped(self) -> int:
        """Frames that the host's own veth refused."""
        return self.nic.to_host.tx_dropped

    def udp_socket(self, address: str, port: int, rcvbuf: int) -> UdpSocket:
        """A real UDP socket."""
        return udp_socket(address, port, rcvbuf)

    def tcp_listener(self, address: str, port: int, rcvbuf: int) -> socket.socket:
        """A real listening socket."""
        return tcp_listener(address, port, rcvbuf)

    def attach(self, client: EmulatedClient) -> None:
        """Let the rings' frames into the model."""
        self._client = client
        plan = client.plan
        self._classifier = Classifier(
            plan.interface.mac,
            (plan.swap.address, plan.swap.port),
            {bystander.port: bystander.sk for bystander in client.sockets},
            gso=plan.gso,
            listeners={listener.port: listener.connection_request for listener in client.listeners},
            tuns={each.plan.interface.mac: each.tun for each in client.virtual_machines},
        )
        self.nic.attach(client.netdev, self._classifier, client.ledger, plan.swap.port)

    async def connect(self, swap_socket: SwapSocket) -> NbdClient:
        """Connect and shake hands. Raises LabError."""
        plan = self._client.plan
        real = self._socket()
        port = real.getsockname()[1]
        self._classifier.connect(port, swap_socket.receive_queue)
        try:
            return await asyncio.to_thread(self._shake_hands, real)
        except (OSError, NbdError) as error:
            self._abandon(real, port)
            raise LabError(f"no swap area at {plan.swap.address} port {plan.swap.port}: {error}") from error
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                real.shutdown(socket.SHUT_RDWR)  # so that the thread wakes up
            self._abandon(real, port)
            raise

    def _socket(self) -> socket.socket:
        real = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        real.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._client.receive_window)
        enlarge(real, socket.SO_SNDBUF, REAL_SEND_BUFFER)
        real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        real.bind((self._client.plan.interface.address, 0))
        return real

    def _shake_hands(self, real: socket.socket) -> NbdClient:
        """In a thread of its own. The kernel's driver knows only simple replies."""
        plan = self._client.plan
        real.settimeout(CONNECT_TIMEOUT)
        real.connect((plan.swap.address, plan.swap.port))
        return open_connection(real, plan.swap.export, tls=plan.tls)

    def _abandon(self, real: socket.socket, port: int) -> None:
        self.nic.disconnect(port)
        real.close()

    def swapon(self, nbd: NbdClient, swap_socket: SwapSocket) -> None:
        """Read from the kernel how far the stream has come, and pass on its acknowledgements."""
        info = nbd.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        swap_socket.receive_queue.copied_seq = struct.unpack_from("=Q", info, TCP_INFO_BYTES_RECEIVED)[0]
        self.nic.swapon(nbd.sock.getsockname()[1], swap_socket.sk)
        self.nic.on_swap_frames = self._tcp_ack

    def disconnect(self, nbd: NbdClient) -> None:
        """Its port is anybody's again."""
        self.nic.disconnect(nbd.sock.getsockname()[1])

    def _tcp_ack(self) -> None:
        """Frames of the connection came, so that TCP may have taken in acknowledgements.

        It may also take them in a little later, on a busy machine; so long as something is unacknowledged, look again.
        """
        if self._client.device.tcp_ack() and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(ACK_POLL_S, self._look_again)

    def _look_again(self) -> None:
        self._ack_timer = None
        self._tcp_ack()

    async def drain(self) -> None:
        """Take the last frames, until no more come and the kernel's own count of them agrees, or there is no hope that
        it will.
        """
        deadline = time.monotonic() + DRAIN_TIMEOUT
        before = -1
        while time.monotonic() < deadline:
            self.nic.receive()
            counted = self.nic.wire_rx_packets()
            if counted == before == self.nic.wire_frames + self.lost:
                return
            before = counted
            await asyncio.sleep(0.01)

    def interfaces(self) -> dict[str, int]:
        """Packets as the kernel counts them on both sides of the model, and as the model does."""
        return {
            "wire_rx_packets": self.nic.wire_rx_packets(),
            "wire_received": self.nic.wire_frames,
            "tp_drops": self.lost,
            "inner_rx_packets": self._inner_packets() - self._inner_before,
            "inner_delivered": self.nic.host_frames,
        }

    def _inner_packets(self) -> int:
        return interface_statistics(self._namespace, HOST_INTERFACE)["rx_packets"]

    def detach(self) -> None:
        """Take no more frames."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        self.nic.detach()
