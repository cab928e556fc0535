"""The skbs that a socket has queued (`struct sk_buff_head`): single ones, and columns of receive skbs as they came."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from testbed.net.skbuff import SkbColumns, SkBuff


class SkbQueue:
    """Skbs in order. Columns belong to the queue once they are in it."""

    __slots__ = ("_length", "_parts")

    def __init__(self) -> None:
        self._parts: deque[SkBuff | SkbColumns] = deque()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[SkBuff]:
        for part in self._parts:
            if isinstance(part, SkBuff):
                yield part
            else:
                yield from part

    def append(self, skb: SkBuff) -> None:
        """Put one skb at the end."""
        self._parts.append(skb)
        self._length += 1

    def extend(self, skbs: SkbColumns) -> None:
        """Put receive skbs at the end."""
        if len(skbs):
            self._parts.append(skbs)
            self._length += len(skbs)

    def popleft(self) -> SkBuff:
        """Remove the first skb."""
        (part,) = self.take(1)
        return part if isinstance(part, SkBuff) else part.popleft()

    def take(self, count: int) -> list[SkBuff | SkbColumns]:
        """Remove the first `count` skbs. Raises IndexError if there are fewer."""
        taken: list[SkBuff | SkbColumns] = []
        while count:
            part = self._parts.popleft()
            size = 1 if isinstance(part, SkBuff) else len(part)
            if size > count and isinstance(part, SkbColumns):
                self._parts.appendleft(part)
                part, size = part.take(count), count
            taken.append(part)
            self._length -= size
            count -= size
        return taken
