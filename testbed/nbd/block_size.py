"""Block size constraints: which offsets and lengths a server takes (spec: "Block size constraints")."""

from dataclasses import dataclass

from testbed.nbd.constants import MAX_REQUEST_LENGTH
from testbed.size import format_size

LARGEST_MINIMUM = 64 << 10  # bytes


@dataclass(frozen=True, slots=True)
class BlockSize:
    """In bytes. Offsets and lengths are multiples of `minimum`, work best as multiples of `preferred`, and the payload
    of a READ or a WRITE is at most `maximum`. The defaults are those that a client may assume unless told otherwise.

    Raises ValueError, in one clear line, for what the spec forbids.
    """

    minimum: int = 1
    preferred: int = 4096
    maximum: int = MAX_REQUEST_LENGTH

    def __post_init__(self) -> None:
        if not _power_of_two(self.minimum) or self.minimum > LARGEST_MINIMUM:
            raise ValueError(f"the minimum block size is a power of two up to 64K, not {format_size(self.minimum)}")
        if not _power_of_two(self.preferred) or self.preferred < max(512, self.minimum):
            raise ValueError(
                f"the preferred block size is a power of two, at least 512 and the minimum, "
                f"not {format_size(self.preferred)}"
            )
        if self.maximum % self.minimum or not self.preferred <= self.maximum <= MAX_REQUEST_LENGTH:
            raise ValueError(
                f"the maximum block size is a multiple of the minimum, at least the preferred and at most "
                f"{format_size(MAX_REQUEST_LENGTH)}, not {format_size(self.maximum)}"
            )

    @property
    def must_be_known(self) -> bool:
        """A client that does not know it could break it."""
        return self.minimum > 1 or self.maximum < MAX_REQUEST_LENGTH


def _power_of_two(number: int) -> bool:
    return number > 0 and not number & (number - 1)


DEFAULT_BLOCK_SIZE = BlockSize()
