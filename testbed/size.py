"""Sizes as people write them: a whole number and a binary unit, "64M" being 64 * 1024 * 1024 bytes."""

import re

UNITS = ("", "K", "M", "G", "T", "P")
SIZE = re.compile(r"([0-9]+)([KMGTP]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in "512", "4K", "64M", "64MiB" or "2g". Raises ValueError, in one clear line, for anything else."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write a whole number and a unit, such as 512M")
    return int(match[1]) << 10 * UNITS.index(match[2].upper())


def format_size(size: int) -> str:
    """The shortest text that `parse_size` turns back into exactly `size` bytes. Raises ValueError if that is negative.
    """
    if size < 0:
        raise ValueError(f"a size cannot be negative: {size}")
    power = 0
    while size and size % 1024 == 0 and power < len(UNITS) - 1:
        size //= 1024
        power += 1
    return f"{size}{UNITS[power]}"
