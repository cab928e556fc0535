"""TCP streams between two real namespaces: at their rate, from start to stop, counted by both ends."""

from __future__ import annotations

import socket
import time

import pytest

from testbed.lab.link import set_address
from testbed.lab.stream import Stream, StreamProfile
from tests.lab.conftest import Wire

pytestmark = pytest.mark.root


def test_a_stream_sends_to_every_port_and_no_faster_than_it_should(wire: Wire) -> None:
    set_address(wire.a, "eth0", "10.0.0.1/24")
    set_address(wire.b, "eth0", "10.0.0.2/24")
    listeners = []
    for port in (8001, 8002):
        with wire.b.entered():
            listeners.append(socket.create_server(("10.0.0.2", port)))
    rate = 4 << 20
    with wire.a.entered():
        stream = Stream(StreamProfile("10.0.0.2", (8001, 8002), rate))
        stream.start()
    connections = [listener.accept()[0] for listener in listeners]
    begin = now = time.monotonic()
    read = [0, 0]
    while sum(read) < 1 << 20:
        wake = stream.step(now)
        assert wake > now
        for number, connection in enumerate(connections):
            connection.setblocking(False)
            try:
                read[number] += len(connection.recv(1 << 20))
            except BlockingIOError:
                continue
        now = time.monotonic()
        assert now < begin + 30
    assert stream.sent <= (now - begin) * rate + (64 << 10)
    assert min(read) > 0
    report = stream.report()
    assert report["sent"] == stream.sent >= sum(read)
    assert report["segments"] > 0
    stream.start()
    stream.close()
    for end in (*connections, *listeners):
        end.close()


def test_a_port_where_nobody_listens_takes_nothing(wire: Wire) -> None:
    set_address(wire.a, "eth0", "10.0.0.1/24")
    set_address(wire.b, "eth0", "10.0.0.2/24")
    with wire.a.entered():
        stream = Stream(StreamProfile("10.0.0.2", (9,), 1 << 20))
        stream.start()
    for number in range(50):
        stream.step(number / 10)
    assert stream.report()["sent"] == 0
    stream.close()
