"""Effects on one direction of a link, one behind the other: what leaves the first goes into the second, when it does.

A frame that an effect holds back waits in one heap with all others, so that every effect sees frames in the order of
time. Effects may come and go meanwhile: a frame goes on with those that stand behind the one it is leaving, whichever
they are by then. What has been held back stays so when its effect goes: it is on the wire already.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import Generic

from testbed.lab.effects.effect import AnyEffect, Frame


class Stack(Generic[Frame]):
    """A stack of effects, each known by a number. Every frame ends somewhere:

    `taken` + `duplicated` = `left` + `held` + the sum of `drops`.
    """

    def __init__(self) -> None:
        self.taken = 0
        self.left = 0
        self.duplicated = 0
        self._places: dict[int, int] = {}
        self._effects: list[tuple[int, AnyEffect]] = []
        self._gone: Counter[str] = Counter()
        self._gone_altered = 0
        self._waiting: list[tuple[float, int, int, Frame]] = []
        self._order = itertools.count()
        self._next_place = itertools.count(1)

    def add(self, number: int, effect: AnyEffect, now: float) -> None:
        """Put an effect behind all others, from `now` on. Raises ValueError if there is one of that number."""
        if number in self._places:
            raise ValueError(f"fault {number} is set already")
        effect.begin(now)
        self._places[number] = place = next(self._next_place)
        self._effects.append((place, effect))

    def remove(self, number: int) -> AnyEffect | None:
        """Take an effect away and return it; None if there is none of that number."""
        place = self._places.pop(number, None)
        for index, (at, effect) in enumerate(self._effects):
            if at == place:
                del self._effects[index]
                self._gone += effect.drops
                self._gone_altered += effect.altered
                return effect
        return None

    @property
    def idle(self) -> bool:
        """Would a frame just pass through?"""
        return not self._effects and not self._waiting

    @property
    def held(self) -> int:
        """Frames that have come and not left."""
        return len(self._waiting)

    @property
    def drops(self) -> Counter[str]:
        """Lost frames by reason, those of effects that are gone included."""
        return sum((effect.drops for _, effect in self._effects), self._gone)

    @property
    def altered(self) -> int:
        """Frames whose bytes were changed."""
        return sum((effect.altered for _, effect in self._effects), self._gone_altered)

    @property
    def next_due(self) -> float | None:
        """When the next frame moves on; None if none waits."""
        return self._waiting[0][0] if self._waiting else None

    def put(self, frame: Frame, now: float) -> None:
        """A frame comes in at `now`; call `due` to have it out again."""
        self.taken += 1
        heapq.heappush(self._waiting, (now, next(self._order), 0, frame))

    def passed(self, frames: int) -> None:
        """So many frames have gone by without being put in, while the stack was idle."""
        self.taken += frames
        self.left += frames

    def due(self, now: float) -> list[Frame]:
        """The frames that leave at `now` or before, in the order in which they do."""
        out: list[Frame] = []
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            time, _, place, frame = heapq.heappop(waiting)
            self._move(frame, time, place, out)
        self.left += len(out)
        return out

    def _move(self, frame: Frame, time: float, place: int, out: list[Frame]) -> None:
        """Take a frame through the effects behind `place` as far as it gets at this moment."""
        for at, effect in self._effects:
            if at <= place:
                continue
            results = tuple(effect.apply(frame, time))
            if len(results) == 1 and results[0][0] <= time:
                frame = results[0][1]
                continue
            self.duplicated += max(0, len(results) - 1)
            for due, result in results:
                heapq.heappush(self._waiting, (due, next(self._order), at, result))
            return
        out.append(frame)
