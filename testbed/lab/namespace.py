"""Network namespaces without names: unshare(CLONE_NEWNET), a descriptor that holds the result, and setns back.

No mount, no /run/netns: when the last process, socket or descriptor in it goes, however it goes, the kernel removes
the namespace with everything inside. It does that some time later, on a work queue; `wait_gone` waits for it.

Open namespaces are listed per process, so that a child made by fork can drop those that are not its business.
"""

from __future__ import annotations

import os
import struct
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from pyroute2.netlink.rtnl import RTM_NEWLINK

from testbed.lab.errors import LabError, lab_error
from testbed.lab.linux import enter_network, open_current_network, unshare_network
from testbed.lab.orphans import end_orphans
from testbed.lab.rtnetlink import CREATE, Request, RouteSocket, closing_quietly

IFF_UP = 1
UP: dict[str, int] = {"flags": IFF_UP, "change": IFF_UP}
_LOOPBACK_UP = Request(RTM_NEWLINK, "bringing loopback up", {"index": 1, **UP})
_ORPHAN_RETRIES = b"1"
_CONGESTION_CONTROL = b"reno"
"""Every kernel has it, and it is not paced, so a connection is as fast as its window on any machine."""
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_open: weakref.WeakSet[NetworkNamespace] = weakref.WeakSet()
_abandoned: list[object] = []


class NetworkNamespace:
    """One network namespace, held by a descriptor and a netlink socket; make it with `create()`."""

    def __init__(self, fd: int, route: RouteSocket) -> None:
        self.fd = fd
        self.route = route
        self._netlink: Any = None
        _open.add(self)

    @classmethod
    def create(cls, *, ipv6: bool = False) -> NetworkNamespace:
        """A new namespace with loopback up; the calling thread stays where it is.

        Unless `ipv6`, interfaces in it speak no IPv6, so that no neighbour discovery of the kernel's own disturbs a
        measured link. Raises LabError (without privilege, with no more descriptors).
        """
        home = open_current_network()
        try:
            unshare_network()
            try:
                return cls._of_current_thread(ipv6)
            finally:
                enter_network(home)
        finally:
            os.close(home)

    @classmethod
    def current(cls) -> NetworkNamespace:
        """The namespace that the calling thread is in, held with a netlink socket of its own. Raises LabError."""
        try:
            return cls(open_current_network(), RouteSocket())
        except OSError as error:
            raise lab_error("looking at this network namespace", error.errno or 0) from error

    @classmethod
    def _of_current_thread(cls, ipv6: bool) -> NetworkNamespace:
        fd = -1
        try:
            fd = open_current_network()
            namespace = cls(fd, RouteSocket())
        except OSError as error:
            closing_quietly(fd)
            raise lab_error("making a network namespace", error.errno or 0) from error
        try:
            if not ipv6:
                switch_ipv6_off("default")
            write_setting("ipv4/tcp_orphan_retries", _ORPHAN_RETRIES)
            write_setting("ipv4/tcp_congestion_control", _CONGESTION_CONTROL)
            namespace.route.request([_LOOPBACK_UP])
        except BaseException:
            namespace.close()
            raise
        return namespace

    @property
    def closed(self) -> bool:
        return self.fd < 0

    @property
    def inode(self) -> int:
        """The number the kernel shows for this namespace in /proc/*/ns/net."""
        return os.fstat(self.fd).st_ino

    @property
    def netlink(self) -> Any:
        """A pyroute2 IPRoute that works in this namespace, opened at first use.

        Only for the thread that asked first, outside a running asyncio loop, and not across fork (pyroute2 keeps a
        loop of its own).
        """
        if self._netlink is None:
            from pyroute2 import IPRoute

            with self.entered():
                self._netlink = IPRoute()
        return self._netlink

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in this namespace for the duration of the block; sockets opened there stay there."""
        home = open_current_network()
        try:
            enter_network(self.fd)
            try:
                yield
            finally:
                enter_network(home)
        finally:
            os.close(home)

    def join(self) -> None:
        """Move the calling thread here for good (a child does so right after fork, before it has other threads)."""
        enter_network(self.fd)

    def close(self) -> None:
        """Let go of the namespace; harmless when done twice. The kernel removes it once nobody else holds it."""
        _open.discard(self)
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.route.close()

    def _abandon_netlink(self) -> None:
        """In a forked child: give up the inherited sockets, whose answers the parent would read.

        Of pyroute2's only the socket is closed: its epoll set is shared with the parent.
        """
        if self._netlink is not None:
            _abandoned.append(self._netlink)
            for fd in _socket_descriptors(self._netlink):
                closing_quietly(fd)
            self._netlink = None
        self.route.close()

    def _reopen_netlink(self) -> None:
        self._abandon_netlink()
        with self.entered():
            self.route = RouteSocket()

    def __enter__(self) -> NetworkNamespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def keep_only(keep: Iterable[NetworkNamespace]) -> None:
    """In a forked child: let go of every inherited namespace but these, or they would outlive their owner.

    Those kept get netlink sockets of their own, so that child and parent do not read each other's answers.
    """
    kept = {id(namespace) for namespace in keep}
    for namespace in list(_open):
        if id(namespace) in kept:
            namespace._reopen_netlink()
        else:
            namespace._abandon_netlink()
            namespace.close()


def wait_gone(namespaces: Iterable[NetworkNamespace], deadline_s: float = 10.0) -> None:
    """Close the namespaces and wait until the kernel has removed them and all links in them.

    A watching namespace gives each a number (RTM_NEWNSID, rtnetlink(7)), which the kernel takes away when it starts
    to dismantle it. Its work queue is then flushed by sending one more namespace after them and waiting for its veth.
    Raises LabError when some process or socket still holds one after `deadline_s` seconds.
    """
    doomed = [namespace for namespace in namespaces if not namespace.closed]
    if not doomed:
        return
    deadline = time.monotonic() + deadline_s
    try:
        with NetworkNamespace.create() as watcher:
            for number, namespace in enumerate(doomed):
                _watch(watcher.route, namespace.fd, number)
            for namespace in doomed:
                with namespace.entered():
                    end_orphans()
                namespace.close()
            held = _StillHeld(watcher.route, len(doomed))
            _poll(deadline, lambda: not watcher.route.dump(_RTM_GETNSID, bytes(4)), held)
            _flush_cleanup(watcher, deadline)
    finally:
        for namespace in doomed:
            namespace.close()


def _watch(route: RouteSocket, fd: int, number: int) -> None:
    body = bytes(4) + struct.pack("=HHIHHI", 8, _NETNSA_NSID, number, 8, _NETNSA_FD, fd)
    route.request_bytes(_RTM_NEWNSID, body, "watching a namespace")


class _StillHeld:
    def __init__(self, route: RouteSocket, total: int) -> None:
        self._route, self._total = route, total

    def __str__(self) -> str:
        left = len(self._route.dump(_RTM_GETNSID, bytes(4)))
        return f"{left} of {self._total} network namespaces are still held by a process or socket: end those first"


def _flush_cleanup(watcher: NetworkNamespace, deadline: float) -> None:
    with NetworkNamespace.create() as last:
        peer = {"attrs": [("IFLA_IFNAME", "last"), ("IFLA_NET_NS_FD", last.fd)]}
        info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
        links = [("IFLA_IFNAME", "barrier"), ("IFLA_LINKINFO", info)]
        watcher.route.request([Request(RTM_NEWLINK, "waiting for namespaces to go", {}, links, CREATE)])
    _poll(deadline, lambda: "barrier" not in watcher.route.link_names(), "the kernel is slow to remove namespaces")


def _poll(deadline: float, done: Any, complaint: object) -> None:
    while not done():
        if time.monotonic() > deadline:
            raise LabError(str(complaint))
        time.sleep(0.001)


def switch_ipv6_off(which: str) -> None:
    """For one interface, or "default" for those to come, of the calling thread's namespace."""
    write_setting(f"ipv6/conf/{which}/disable_ipv6", b"1")


def write_setting(name: str, value: bytes) -> None:
    """Write /proc/sys/net/`name` of the calling thread's namespace; what this kernel does not have needs no setting.

    Raises LabError.
    """
    try:
        fd = os.open(f"/proc/sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise lab_error(f"setting net/{name}", error.errno or 0) from error
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _socket_descriptors(netlink: Any) -> list[int]:
    try:
        return [netlink.fileno()]
    except (AttributeError, OSError, ValueError):
        return []
