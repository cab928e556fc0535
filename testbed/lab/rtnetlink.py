"""Route netlink in batches: pyroute2 encodes the messages, one plain socket carries many of them per send.

The kernel answers every message of a batch with its own acknowledgement, in order. A socket belongs for ever to
the namespace it was opened in, so a lab can configure a namespace without entering it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from testbed.lab.errors import LabError, lab_error

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
CREATE = NLM_F_CREATE | NLM_F_EXCL
REPLACE = NLM_F_CREATE | NLM_F_REPLACE
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11
_FLAG_ACK_TLVS, _NLMSGERR_ATTR_MSG = 0x200, 1
_HEADER = struct.Struct("=IHHII")
_SEQUENCE, _SEQUENCE_AT = struct.Struct("=I"), 8
_BATCH = 32
_TIMEOUT_S = 30.0
_CLASSES: dict[int, Any] = {
    RTM_NEWLINK: ifinfmsg,
    RTM_DELLINK: ifinfmsg,
    RTM_GETLINK: ifinfmsg,
    RTM_NEWADDR: ifaddrmsg,
    RTM_NEWNEIGH: ndmsg,
}


@dataclass(slots=True)
class Request:
    """One message: `kind` (RTM_*), header `fields`, attributes, extra NLM_F_* flags, and what it is for (errors).

    It may be sent any number of times, to any namespace; pyroute2 encodes it once.
    """

    kind: int
    doing: str
    fields: dict[str, Any]
    attributes: Sequence[tuple[str, Any]] = ()
    flags: int = 0
    _message: bytearray | None = field(default=None, init=False)

    def encoded(self, sequence: int) -> bytes:
        """The message's bytes (netlink(7)) with that sequence number, asking for an acknowledgement."""
        if self._message is None:
            self._message = self._encode()
        _SEQUENCE.pack_into(self._message, _SEQUENCE_AT, sequence)
        return bytes(self._message)

    def _encode(self) -> bytearray:
        message = _CLASSES[self.kind]()
        for name, value in self.fields.items():
            message[name] = value
        message["attrs"] = list(self.attributes)
        message["header"]["type"] = self.kind
        message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | self.flags
        message.encode()
        return bytearray(message.data)


class Stencil:
    """A request encoded once with stand-in values, of which each copy replaces some: encoding takes far longer.

    `places` names the bytes of each stand-in as they appear in the message. Raises LabError unless each appears
    exactly once.
    """

    def __init__(self, request: Request, places: dict[str, bytes]) -> None:
        self._request = request
        self._message = request.encoded(0)
        self._spans: dict[str, slice] = {}
        for name, stand_in in places.items():
            at = self._message.find(stand_in)
            if self._message.count(stand_in) != 1:
                raise LabError(f"the stand-in for {name} is not unique in a netlink message: choose another")
            self._spans[name] = slice(at, at + len(stand_in))

    def filled(self, doing: str, values: dict[str, bytes]) -> Request:
        """A copy with the named places replaced by `values` (shorter ones are filled up with NUL)."""
        message = bytearray(self._message)
        for name, value in values.items():
            span = self._spans[name]
            message[span] = value.ljust(span.stop - span.start, b"\0")
        request = Request(self._request.kind, doing, {})
        request._message = message
        return request


class RouteSocket:
    """A netlink socket of the namespace the calling thread is in; usable from anywhere afterwards."""

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT_S)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sequence = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def request(self, requests: Iterable[Request]) -> None:
        """Carry out all requests, 32 to a send. Raises LabError for the first that the kernel refused.

        Later requests of the same batch have been tried all the same: the kernel does not stop at an error.
        """
        waiting = list(requests)
        for start in range(0, len(waiting), _BATCH):
            self._exchange(waiting[start : start + _BATCH])

    def request_bytes(self, kind: int, body: bytes, doing: str, flags: int = 0) -> None:
        """Carry out one request whose payload is encoded already. Raises LabError when it is refused."""
        self._sequence += 1
        flags |= NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(_HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body)
        self._acknowledged([doing])

    def _exchange(self, batch: list[Request]) -> None:
        first = self._sequence + 1
        self._sequence += len(batch)
        self._socket.send(b"".join(item.encoded(first + number) for number, item in enumerate(batch)))
        self._acknowledged([item.doing for item in batch])

    def _acknowledged(self, doing: list[str]) -> None:
        """Collect one acknowledgement for each of the last requests; raise the first refusal."""
        first = self._sequence + 1 - len(doing)
        failure: LabError | None = None
        missing = len(doing)
        while missing:
            for kind, flags, sequence, body in _messages(self._receive()):
                if kind != _NLMSG_ERROR or not first <= sequence <= self._sequence:
                    continue
                missing -= 1
                number = -struct.unpack_from("=i", body)[0]
                if number and failure is None:
                    failure = lab_error(doing[sequence - first], number, _extended(flags, body))
        if failure is not None:
            raise failure

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(1 << 20)
        except TimeoutError as error:
            raise LabError("the kernel does not answer on netlink: something holds its RTNL lock") from error

    def dump(self, kind: int, body: bytes, *, all_of_them: bool = True, doing: str = "reading") -> list[bytes]:
        """The bodies of the answers to a read request whose payload is `body`. Raises LabError."""
        self._sequence += 1
        flags = NLM_F_REQUEST | (NLM_F_DUMP if all_of_them else 0)
        self._socket.send(_HEADER.pack(16 + len(body), kind, flags, self._sequence, 0) + body)
        answers: list[bytes] = []
        while True:
            for answer, answer_flags, sequence, content in _messages(self._receive()):
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    raise lab_error(doing, -struct.unpack_from("=i", content)[0], _extended(answer_flags, content))
                if answer == _NLMSG_DONE:
                    return answers
                answers.append(content)
                if not all_of_them:
                    return answers

    def link(self, ifname: str, doing: str) -> dict[int, bytes]:
        """The attributes (IFLA_* number -> bytes) of one interface; key 0 holds the `struct ifinfomsg`."""
        name = ifname.encode() + b"\0"
        body = bytes(16) + struct.pack("=HH", 4 + len(name), 3) + name + bytes(-len(name) % 4)
        answer = self.dump(RTM_GETLINK, body, all_of_them=False, doing=doing)[0]
        return {0: answer[:16], **attributes(answer[16:])}

    def link_names(self) -> set[str]:
        """The names of all interfaces in this namespace."""
        answers = self.dump(RTM_GETLINK, bytes(16), doing="listing interfaces")
        return {attributes(answer[16:])[3].rstrip(b"\0").decode() for answer in answers}

    def highest_index(self) -> int:
        """The largest interface number in use in this namespace."""
        answers = self.dump(RTM_GETLINK, bytes(16), doing="listing interfaces")
        return max(int(struct.unpack_from("=i", answer, 4)[0]) for answer in answers)

    def index(self, ifname: str, doing: str = "") -> int:
        """The interface's number (ifi_index). Raises LabError when there is none of that name."""
        return int(struct.unpack_from("=i", self.link(ifname, doing or f"looking for {ifname}")[0], 4)[0])


def attributes(data: bytes) -> dict[int, bytes]:
    """Netlink attributes as type -> value bytes (the last of each type wins)."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def _messages(data: bytes) -> Iterable[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of every message in one datagram."""
    while len(data) >= 16:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data)
        yield kind, flags, sequence, data[16:length]
        data = data[(length + 3) & ~3 :]


def _extended(flags: int, body: bytes) -> str:
    """What the kernel says about an error in words, if it does (NETLINK_EXT_ACK)."""
    if not flags & _FLAG_ACK_TLVS:
        return ""
    text = attributes(body[20:]).get(_NLMSGERR_ATTR_MSG, b"")
    number = -struct.unpack_from("=i", body)[0]
    return text.rstrip(b"\0").decode(errors="replace") + f" [{os.strerror(number)}]" if text else ""


def closing_quietly(fd: int) -> None:
    """Close a descriptor that may be closed already."""
    with contextlib.suppress(OSError):
        os.close(fd)
