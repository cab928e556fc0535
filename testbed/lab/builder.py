"""Namespaces and veths for one occasion, such as a test: made one by one, gone together."""

from __future__ import annotations

from types import TracebackType

from testbed.lab.link import End, add_veth, set_up, wait_up
from testbed.lab.namespace import NetworkNamespace, wait_gone


class Lab:
    """Makes namespaces, and links between them; use it as a context manager, or close it."""

    def __init__(self) -> None:
        self.namespaces: list[NetworkNamespace] = []

    def namespace(self) -> NetworkNamespace:
        """A new namespace with nothing but loopback. Raises LabError."""
        self.namespaces.append(NetworkNamespace.create())
        return self.namespaces[-1]

    def link(self, a: End, b: End, *, mac_a: str | None = None, mac_b: str | None = None) -> None:
        """A veth between two ends, each a namespace and the name of an interface, both up. Raises LabError."""
        add_veth(a, b, mac_a=mac_a, mac_b=mac_b)
        for namespace, ifname in (a, b):
            set_up(namespace, ifname)
        for namespace, ifname in (a, b):
            wait_up(namespace, ifname)

    def close(self) -> None:
        """Let go of everything and wait until the kernel has taken it down."""
        wait_gone(self.namespaces)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
