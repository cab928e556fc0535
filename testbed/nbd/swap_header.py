"""Page 0 of a swap area, as mkswap writes it and as swapon reads it: the kernel's `union swap_header`, version 1.

The first 1024 bytes are left to a boot loader, the signature is in the page's last ten bytes. Numbers are in the byte
order of the machine, so page 0 tells whether it was made on one of the other order.
"""

import struct
import sys
from dataclasses import dataclass

PAGE_SIZE = 4096  # bytes
SIGNATURE = b"SWAPSPACE2"
SIGNATURE_OFFSET = PAGE_SIZE - len(SIGNATURE)
INFO_OFFSET = 1024
INFO = struct.Struct("=LLL16s16s")  # version, last_page, nr_badpages, sws_uuid, sws_volume
VERSION = 1
MIN_PAGES = 10  # mkswap makes nothing smaller
LABEL_BYTES = 15  # and a zero


@dataclass(frozen=True, slots=True)
class SwapHeader:
    """`last_page` counts pages of 4096 bytes, page 0 included; `uuid` is None if the area has none."""

    last_page: int
    nr_badpages: int
    uuid: bytes | None
    label: str


def swap_header(pages: int, uuid: bytes | None, label: str = "") -> bytes:
    """Page 0 of a swap area of `pages` pages, this one included; `uuid` has 16 bytes, `label` at most 15.

    Raises ValueError for what mkswap would not make either.
    """
    if not MIN_PAGES <= pages <= 1 << 32:
        raise ValueError(f"a swap area has at least {MIN_PAGES} and at most {1 << 32} pages, not {pages}")
    if uuid is not None and len(uuid) != 16:
        raise ValueError(f"a UUID has 16 bytes, not {len(uuid)}")
    name = label.encode()
    if len(name) > LABEL_BYTES or b"\0" in name:
        raise ValueError(f"the label of a swap area has at most {LABEL_BYTES} bytes, none of them zero: {label!r}")
    page = bytearray(PAGE_SIZE)
    INFO.pack_into(page, INFO_OFFSET, VERSION, pages - 1, 0, uuid or bytes(16), name)
    page[SIGNATURE_OFFSET:] = SIGNATURE
    return bytes(page)


def read_swap_header(page: bytes) -> SwapHeader:
    """What swapon would find in page 0. Raises ValueError, in one clear line, if it would refuse."""
    if len(page) < PAGE_SIZE or page[SIGNATURE_OFFSET:PAGE_SIZE] != SIGNATURE:
        raise ValueError("this is not a swap area: the signature SWAPSPACE2 is missing")
    version, last_page, nr_badpages, uuid, volume = INFO.unpack_from(page, INFO_OFFSET)
    if version != VERSION:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") == VERSION
        other = {"little": "big", "big": "little"}[sys.byteorder]
        raise ValueError(
            f"the swap area was made on a {other}-endian machine" if swapped else f"unknown swap area version {version}"
        )
    if not last_page:
        raise ValueError("the swap area is empty")
    label = volume.split(b"\0", 1)[0].decode(errors="replace")
    return SwapHeader(last_page, nr_badpages, uuid if any(uuid) else None, label)
