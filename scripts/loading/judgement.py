"""When a server has served its clients well: each had its share, none was told a wrong byte, and memory stayed.

* Share: the slowest client completes at least half the requests that each would if all were equal.
* Growth: from a tenth of the time to its end the server's resident memory grows by 4 MiB at most. The export has
  been written from end to end before the time begins, so none of its pages is new.
* Size: at no time is more resident than the export (if that is memory), 64 MiB, and 1 MiB for each client.
* No request fails, and each READ brings what was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SHARE = 0.5
MOST_GROWTH = 4 << 20
"""Bytes."""
PROGRAM = 64 << 20
"""Bytes that the interpreter may take."""
PER_CLIENT = 1 << 20
"""Bytes."""
SETTLED = 0.1
"""The part of the time after which the server has all the memory that it needs."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one client saw while the time ran: requests completed, how many failed or brought wrong bytes, and the
    longest wait for a reply in seconds.
    """

    requests: int
    errors: int = 0
    corrupt: int = 0
    longest_wait: float = 0.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of a run of many clients. `share` is the slowest client's over a fair one; sizes in bytes."""

    share: float
    errors: int
    corrupt: int
    settled: int
    end: int
    peak: int
    most: int

    @property
    def complaints(self) -> list[str]:
        """What was not as it should be, a line each."""
        growth = self.end - self.settled
        found = [
            (self.share < LEAST_SHARE, f"a client got {self.share:.2f} of its fair share, less than {LEAST_SHARE:g}"),
            (self.errors > 0, f"{self.errors} requests failed"),
            (self.corrupt > 0, f"{self.corrupt} READs brought wrong bytes"),
            (growth > MOST_GROWTH, f"the server grew by {mebibytes(growth)}, more than {mebibytes(MOST_GROWTH)}"),
            (self.peak > self.most, f"the server took {mebibytes(self.peak)}, more than {mebibytes(self.most)}"),
        ]
        return [complaint for wrong, complaint in found if wrong]


def judge(clients: Sequence[Served], resident: Sequence[int], export: int) -> Judgement:
    """`resident` is the server's memory, sampled evenly over the time, and `export` what of it are the data; bytes."""
    total = sum(client.requests for client in clients)
    return Judgement(
        share=min(client.requests for client in clients) * len(clients) / total if total else 0.0,
        errors=sum(client.errors for client in clients),
        corrupt=sum(client.corrupt for client in clients),
        settled=resident[int(len(resident) * SETTLED)],
        end=resident[-1],
        peak=max(resident),
        most=export + PROGRAM + PER_CLIENT * len(clients),
    )


def mebibytes(size: int) -> str:
    """For people."""
    return f"{size / (1 << 20):.1f} MiB"
