"""Cutting a GSO frame: what is kept is what a sender without offload would have sent."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from testbed.hosts.segment import internet_checksum, kept_segments

FIN, PSH, ACK = 0x01, 0x08, 0x10
OPTIONS = [("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))]


def frame(payload: bytes, sequence: int, identification: int, flags: int, timestamps: bool) -> bytes:
    """An Ethernet frame with a TCP segment over IPv4, checksums filled in by scapy."""
    packet = (
        Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        / IP(src="10.0.0.1", dst="10.0.0.2", id=identification, flags="DF", ttl=63)
        / TCP(sport=10809, dport=40000, seq=sequence, ack=77, flags=flags, options=OPTIONS if timestamps else [])
        / payload
    )
    return bytes(packet)


@settings(max_examples=60)
@given(
    payload=st.binary(min_size=1, max_size=6000),
    gso_size=st.integers(1, 1460),
    sequence=st.integers(0, 0xFFFFFFFF),
    identification=st.integers(0, 0xFFFF),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | PSH | FIN]),
    timestamps=st.booleans(),
    pattern=st.randoms(use_true_random=False),
)
def test_kept_segments_are_those_of_a_sender_without_offload(
    *, payload: bytes, gso_size: int, sequence: int, identification: int, flags: int, timestamps: bool, pattern: Random
) -> None:
    gso_size = max(gso_size, len(payload) // 20 + 1)
    count = -(-len(payload) // gso_size)
    kept = [pattern.random() < 0.5 for _ in range(count)]
    expected = [
        frame(
            payload[number * gso_size : (number + 1) * gso_size],
            (sequence + number * gso_size) & 0xFFFFFFFF,
            (identification + number) & 0xFFFF,
            flags if number == count - 1 else flags & ~(FIN | PSH),
            timestamps,
        )
        for number in range(count)
        if kept[number]
    ]
    whole = frame(payload, sequence, identification, flags, timestamps)
    assert kept_segments(whole, gso_size, kept) == expected


def test_unfinished_checksums_of_the_whole_do_not_matter_and_padding_is_left_out() -> None:
    whole = bytearray(frame(b"swap" * 500, 1, 2, ACK, True))
    whole[24:26] = whole[50:52] = b"\0\0"
    segments = kept_segments(bytes(whole) + b"\xaa" * 6, 1000, [True, True])
    assert segments == [
        frame(b"swap" * 250, 1, 2, ACK, True),
        frame(b"swap" * 250, 1001, 3, ACK, True),
    ]


@given(st.binary(max_size=200))
def test_data_with_its_checksum_sums_to_zero(data: bytes) -> None:
    padded = data + b"\0" * (len(data) % 2)
    assert internet_checksum(padded + internet_checksum(data).to_bytes(2, "big")) == 0
