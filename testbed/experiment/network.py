"""Builds a plan's network: a namespace for each host, two for a client (its NIC's and its own), bridges and veths.

A real kernel in a client's place brings its own network stack: its one namespace has nothing but the end of the link.

Everything is held by descriptors of the runner and its children; when they are gone, so is the network.
"""

from __future__ import annotations

from types import TracebackType

from testbed.experiment.plan import Plan, SegmentPlan
from testbed.hosts.plan import ClientPlan, Interface
from testbed.hosts.swap_client import HOST_INTERFACE, INNER, WIRE
from testbed.lab.fault_relay import HOST_SIDE, NETWORK_SIDE
from testbed.lab.link import (
    Bridge,
    End,
    add_bridge,
    add_permanent_neighbour,
    add_veth,
    set_address,
    set_neighbour_timeout,
    set_offloads,
    set_up,
    wait_up,
)
from testbed.lab.namespace import NetworkNamespace, wait_gone


class Network:
    """The namespaces of a running plan, by host name.

    `nics` are those that clients' NICs live in, `relays` those in the middle of links that can have faults.
    """

    def __init__(self, plan: Plan) -> None:
        self.hosts: dict[str, NetworkNamespace] = {}
        self.nics: dict[str, NetworkNamespace] = {}
        self.relays: dict[str, NetworkNamespace] = {}
        self._fault_links = plan.fault_links
        self._clients = {client.name: client for client in plan.clients}
        self._kernels = {client.name for client in plan.clients if client.host == "kernel"}
        self._segments = plan.segments
        self._switches: list[NetworkNamespace] = []
        try:
            for segment in plan.segments:
                self._build(segment, offloads=self._offloads)
        except BaseException:
            self.close()
            raise

    @property
    def _offloads(self) -> bool:
        """Whether frames may be larger than the MTU: every client must be able to take them."""
        return all(client.gso for client in self._clients.values()) and not self._kernels

    def _build(self, segment: SegmentPlan, *, offloads: bool) -> None:
        ends = [self._host(interface) for interface in segment.interfaces]
        plugs = [self._plug_of(end, interface) for end, interface in zip(ends, segment.interfaces, strict=True)]
        if segment.kind == "bridge":
            switch = NetworkNamespace.create()
            self._switches.append(switch)
            bridge = add_bridge(switch, "br0")
            for number, (plug, interface) in enumerate(zip(plugs, segment.interfaces, strict=True)):
                self._plug(bridge, f"port{number}", plug, interface)
        else:
            one, other = segment.interfaces
            add_veth(
                *(plugs[0], plugs[1]), mtu=one.mtu, mac_a=self._outer_mac(one), mac_b=self._outer_mac(other)
            )
        self._raise_relays(segment)
        for end, interface in zip(ends, segment.interfaces, strict=True):
            self._bring_up(end, interface, offloads=offloads)
        self._introduce(segment)

    def _host(self, interface: Interface) -> End:
        """Make a host's namespaces; the end that its link to the others is to have."""
        host = self.hosts[interface.host] = NetworkNamespace.create()
        if interface.host not in self._clients:
            return host, HOST_INTERFACE
        if interface.host in self._kernels:
            return host, WIRE
        nic = self.nics[interface.host] = NetworkNamespace.create()
        add_veth((nic, INNER), (host, HOST_INTERFACE), mtu=interface.mtu, mac_b=interface.mac)
        return nic, WIRE

    def _plug_of(self, end: End, interface: Interface) -> End:
        """What of a host is plugged in: its end, or the far side of the relay that its link is led through."""
        if interface.host not in self._fault_links:
            return end
        relay = self.relays[interface.host] = NetworkNamespace.create()
        mac = None if interface.host in self._clients else interface.mac
        add_veth((relay, HOST_SIDE), end, mtu=interface.mtu, mac_b=mac)
        return relay, NETWORK_SIDE

    def _raise_relays(self, segment: SegmentPlan) -> None:
        for interface in segment.interfaces:
            if interface.host in self.relays:
                for ifname in (HOST_SIDE, NETWORK_SIDE):
                    set_up(self.relays[interface.host], ifname)

    def _outer_mac(self, interface: Interface) -> str | None:
        """What the plug's MAC address has to be; None if the host's is further in."""
        return None if interface.host in self._clients or interface.host in self.relays else interface.mac

    def _plug(self, bridge: Bridge, port: str, end: End, interface: Interface) -> None:
        add_veth(
            (bridge.namespace, port), end, mtu=interface.mtu, mac_b=self._outer_mac(interface), master_a=bridge
        )

    def _bring_up(self, end: End, interface: Interface, *, offloads: bool) -> None:
        host = self.hosts[interface.host]
        inside = [end]
        if interface.host in self.nics:
            inside += [(host, HOST_INTERFACE), (self.nics[interface.host], INNER)]
        for namespace, ifname in inside:
            if not offloads:
                set_offloads(namespace, ifname, on=False)
            set_up(namespace, ifname)
        for namespace, ifname in inside:
            wait_up(namespace, ifname)
        if interface.host in self._kernels:
            return
        if interface.host in self._clients:
            set_up(host, "lo")
        set_address(host, HOST_INTERFACE, interface.ipv4)
        client = self._clients.get(interface.host)
        if client is not None and client.neighbour_timeout is not None:
            set_neighbour_timeout(host, HOST_INTERFACE, client.neighbour_timeout)

    def _introduce(self, segment: SegmentPlan) -> None:
        """Tell clients and the others of each other's addresses for good: swap must not hang on ARP by accident.

        A client with a `neighbour_timeout` has to find its swap server's address by itself, and again later.
        """
        for client in segment.interfaces:
            if client.host not in self._clients:
                continue
            for other in segment.interfaces:
                if other.host not in self._clients:
                    if client.host not in self._kernels and not self._resolves(client, other):
                        self._add_neighbour(client, other)
                    self._add_neighbour(other, client)

    def known_to(self, client: ClientPlan) -> tuple[tuple[str, str], ...]:
        """The addresses, and MAC addresses, that a kernel in the client's place is told for good."""
        segment = self._segments[client.interface.segment]
        others = [other for other in segment.interfaces if other.host not in self._clients]
        return tuple((other.address, other.mac) for other in others if not self._resolves(client.interface, other))

    def _resolves(self, client: Interface, other: Interface) -> bool:
        plan = self._clients[client.host]
        return plan.neighbour_timeout is not None and plan.swap.address == other.address

    def _add_neighbour(self, at: Interface, other: Interface) -> None:
        add_permanent_neighbour(self.hosts[at.host], HOST_INTERFACE, other.address, other.mac)

    def close(self) -> None:
        """Let go of everything and wait until the kernel has taken it down."""
        wait_gone([*self.hosts.values(), *self.nics.values(), *self.relays.values(), *self._switches])

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
