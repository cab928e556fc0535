"""Each storage fault on a real socket: what the client sees, and what reached the export."""

import errno
import socket
import struct
import threading
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.nbd.connection import Connection
from testbed.nbd.export import MemoryExport
from testbed.nbd.faults import FAULTS, make, parse
from testbed.nbd.faults.active import ActiveFaults
from testbed.nbd.server_protocol import Flush, Read, Write
from testbed.nbd.transmission import ServerStatistics
from tests.nbd.support import FIXED_NO_ZEROES, eventually, option, reply, request

SIZE = 1 << 20
READ, WRITE, DISC, FLUSH = range(4)
EIO, ENOSPC = 5, 28
OLD, NEW = b"o" * 2048, b"n" * 2048


class Served:
    """A connection in a thread, past its handshake unless a fault forbids it."""

    def __init__(self) -> None:
        self.faults = ActiveFaults()
        self.export = MemoryExport(SIZE)
        self.export.write(0, OLD)
        self.sock, self._theirs = socket.socketpair()
        self.sock.settimeout(20)
        self.connection = Connection(self._theirs, {"": self.export}, ServerStatistics(), faults=self.faults)
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        with self._theirs:
            self.connection.serve()

    def begin(self) -> None:
        self._thread.start()

    def negotiate(self) -> None:
        self.begin()
        self.sock.sendall(FIXED_NO_ZEROES + option(1))
        assert len(self.exactly(18 + 10)) == 28

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count and (more := self.sock.recv(count - len(data))):
            data += more
        return data

    def ask(self, *requests: bytes) -> bytes:
        """All that comes until the server hangs up, which it is asked to do at the end."""
        self.sock.sendall(b"".join(requests) + request(DISC, 0))
        return self.exactly(SIZE)

    def set(self, kind: str, **arguments: Any) -> None:
        self.faults.set(1, make(kind, arguments, 1))

    def end(self) -> None:
        self.faults.close()
        self.sock.close()
        if self._thread.ident is not None:
            self._thread.join(20)
            assert not self._thread.is_alive()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.end()


@pytest.mark.parametrize(
    ("kind", "errors"),
    [
        ("eio_read", [EIO, 0, 0]),
        ("eio_write", [0, EIO, 0]),
        ("eio_flush", [0, 0, EIO]),
        ("enospc", [0, ENOSPC, 0]),
    ],
)
def test_errors(served: Served, kind: str, errors: list[int]) -> None:
    served.negotiate()
    served.set(kind)
    said = served.ask(request(READ, 1, 0, 512), request(WRITE, 2, 0, 2048, NEW), request(FLUSH, 3))
    data = b"" if errors[0] else OLD[:512]
    assert said == reply(1, errors[0], data) + reply(2, errors[1]) + reply(3, errors[2])
    assert served.export.memory[:2048] == (OLD if errors[1] else NEW), "a write that failed has not happened"
    assert served.faults.counts() == {f"fault_{kind}": 1}


@pytest.mark.parametrize(("told", "error"), [("error", EIO), ("success", 0)])
def test_torn_write(served: Served, told: str, error: int) -> None:
    served.negotiate()
    served.set("torn_write", fraction=0.5, told=told)
    served.sock.sendall(request(FLUSH, 9))  # what is received from now on lands aside
    assert served.exactly(16) == reply(9)
    assert served.ask(request(WRITE, 1, 0, 2048, NEW)) == reply(1, error)
    assert served.export.memory[:2048] == NEW[:1024] + OLD[1024:]


def test_slow_requests_are_answered(served: Served) -> None:
    served.negotiate()
    served.set("slow", seconds=0.001, jitter=0.001)
    assert served.ask(request(READ, 1, 0, 512), request(FLUSH, 2)) == reply(1, 0, OLD[:512]) + reply(2)
    assert served.faults.counts() == {"fault_slow": 2}


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_what_waits_goes_on_when_the_fault_is_cleared(served: Served, kind: str) -> None:
    served.negotiate()
    served.set(kind, **({"seconds": 1000} if kind == "stall" else {}))
    served.sock.sendall(request(READ, 1, 0, 512))
    eventually(lambda: served.faults.counts() == {f"fault_{kind}": 1})
    served.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        served.sock.recv(1)
    served.sock.settimeout(20)
    served.faults.clear(1)
    assert served.exactly(16 + 512) == reply(1, 0, OLD[:512])
    assert not served.faults.acting


def test_a_stall_ends_by_itself(served: Served) -> None:
    served.negotiate()
    served.set("stall", seconds=0.01)
    assert served.ask(request(FLUSH, 1), request(FLUSH, 2)) == reply(1) + reply(2)


def test_short_reply(served: Served) -> None:
    served.negotiate()
    served.set("short_reply", missing=100)
    assert served.ask(request(READ, 1, 0, 512)) == reply(1, 0, OLD[: 512 - 100])


def test_garbled_magic(served: Served) -> None:
    served.negotiate()
    served.set("garbled_reply")
    said = served.ask(request(READ, 1, 0, 512))
    assert said[:4] != reply(1)[:4]
    assert said[4:] == reply(1, 0, OLD[:512])[4:]


def test_garbled_data(served: Served) -> None:
    served.negotiate()
    served.set("garbled_reply", part="data")
    said = served.ask(request(READ, 1, 0, 512), request(FLUSH, 2))
    assert said[:16] == reply(1)
    differing = [(a ^ b).bit_count() for a, b in zip(said[16:528], OLD, strict=False)]
    assert sum(differing) == 1
    assert said[528:] == reply(2)


def test_wrong_handle(served: Served) -> None:
    served.negotiate()
    served.set("wrong_handle", times=1)
    said = served.ask(request(FLUSH, 1), request(FLUSH, 2))
    assert struct.unpack(">LLQ", said[:16])[2] not in (1, 2)
    assert said[16:] == reply(2)


def test_out_of_order(served: Served) -> None:
    served.negotiate()
    served.set("out_of_order", every_nth=2, after=1)
    said = served.ask(*(request(FLUSH, handle) for handle in range(1, 7)))
    assert said == b"".join(reply(handle) for handle in (1, 2, 4, 3, 6, 5))


def test_alone_nothing_is_held_back(served: Served) -> None:
    served.negotiate()
    served.set("out_of_order")
    served.sock.sendall(request(FLUSH, 1))
    assert served.exactly(16) == reply(1)


def test_twice(served: Served) -> None:
    served.negotiate()
    served.set("twice")
    assert served.ask(request(FLUSH, 1)) == reply(1) * 2


@pytest.mark.parametrize(
    ("point", "said"),
    [("reply_header", reply(1)[:8]), ("reply_data", reply(1, 0, OLD[:256]))],
)
def test_disconnect_in_a_reply(served: Served, point: str, said: bytes) -> None:
    served.negotiate()
    served.set("disconnect", point=point)
    assert served.ask(request(READ, 1, 0, 512), request(READ, 2, 0, 512)) == said


def test_disconnect_before_negotiation(served: Served) -> None:
    served.set("disconnect", point="before_negotiation")
    served.begin()
    assert served.exactly(1) == b""


def test_disconnect_in_an_option_reply(served: Served) -> None:
    served.set("disconnect", point="option_reply")
    served.begin()
    served.sock.sendall(FIXED_NO_ZEROES + option(3))
    whole = 20 + 4 + len("1M of memory") + 20
    assert len(served.exactly(1000)) == 18 + whole // 2


def test_faults_stack(served: Served) -> None:
    served.negotiate()
    for number, kind in enumerate(("twice", "eio_read", "twice")):
        served.faults.set(number, make(kind, {}, number))
    assert served.ask(request(READ, 1, 0, 512)) == reply(1, EIO) * 4
    assert served.faults.counts() == {"fault_twice": 2, "fault_eio_read": 1}


def test_a_stopping_server_refuses_what_it_still_hears(served: Served) -> None:
    served.negotiate()
    served.connection.stopping = True
    assert served.ask(request(READ, 1, 0, 512), request(FLUSH, 2)) == reply(1, errno.ESHUTDOWN) + reply(2, 108)


@pytest.mark.parametrize("kind", FAULTS)
def test_switched_off_again_nothing_is_left(served: Served, kind: str) -> None:
    served.negotiate()
    served.set(kind)
    served.faults.clear(1)
    said = served.ask(request(WRITE, 1, 0, 2048, NEW), request(READ, 2, 0, 512), request(FLUSH, 3))
    assert said == reply(1) + reply(2, 0, NEW[:512]) + reply(3)
    assert served.faults.counts() == {f"fault_{kind}": 0}


def picked(text: str, requests: int, seed: int = 1) -> list[int]:
    fault = parse(text, seed)
    return [number for number in range(requests) if fault.picks(0.0)]


def test_which_requests_are_picked() -> None:
    assert picked("eio_read", 3) == [0, 1, 2]
    assert picked("eio_read:every_nth=3,after=2", 12) == [4, 7, 10]
    assert picked("eio_read:after=2,times=2", 9) == [2, 3]


@given(st.floats(0.05, 0.95), st.integers(0, 1 << 32))
def test_chance_repeats_with_its_seed(probability: float, seed: int) -> None:
    text = f"eio_read:probability={probability}"
    assert picked(text, 200, seed) == picked(text, 200, seed)
    assert len(picked(text, 200, seed)) < 200


def test_only_some_offsets() -> None:
    fault = parse("eio_read:offset_from=4096,offset_to=8192", 1).fault
    touched = [fault.touches(Read(1, offset, 512)) for offset in (3584, 3585, 4096, 8191, 8192)]
    assert touched == [False, True, True, True, False]
    assert not fault.touches(Flush(1))
    assert not fault.touches(Write(1, 4096, memoryview(b"x"), False))


@given(st.integers(0, 1 << 24), st.floats(0, 0.99))
def test_a_torn_write_is_a_prefix_in_sectors(length: int, fraction: float) -> None:
    kept = FAULTS["torn_write"](fraction=fraction).kept(length)  # type: ignore[call-arg]
    assert kept <= length * fraction
    assert kept % 512 == 0


@given(st.binary(min_size=16, max_size=600), st.sampled_from(sorted(FAULTS)), st.integers())
def test_no_reply_breaks_a_fault(message: bytes, kind: str, seed: int) -> None:
    fault = make(kind, {}, seed).fault
    assert all(isinstance(each, bytes) for each in fault.replies(message, Random(seed)))
    cut = fault.cut(message)
    assert cut is None or cut <= len(message)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flood", "unknown storage fault 'flood'"),
        ("slow:second=1", "no argument 'second'"),
        ("slow:seconds", "'seconds' is not name=value"),
        ("slow:seconds=long", "seconds is a number"),
        ("slow:seconds=nan", "seconds is a number"),
        ("slow:seconds=-1", "not negative"),
        ("eio_read:every_nth=0", "every_nth is at least 1"),
        ("eio_read:every_nth=1.5", "every_nth is a number"),
        ("eio_read:probability=2", "probability is above 0"),
        ("eio_read:times=0", "times is at least 1"),
        ("eio_read:offset_from=2,offset_to=1", "offset_from is below offset_to"),
        ("disconnect:point=nowhere", "point is one of before_negotiation"),
        ("garbled_reply:part=1", "part is a word"),
        ("torn_write:fraction=1", "fraction is below 1"),
        ("torn_write:told=nothing", 'told is "error" or "success"'),
    ],
)
def test_faults_that_make_no_sense(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        parse(text, 1)
    assert "\n" not in str(refused.value)
