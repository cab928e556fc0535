"""One way to break the model: a rule, the text that carries it, and the tests that must notice when it is gone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class Stale(Exception):
    """The tree is no longer what a mutation was written for; the message says how."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """`text`, which `file` must hold exactly once, becomes `replacement`; one of `tests` (files) is to fail then."""

    name: str
    rule: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]

    def check(self, root: Path) -> None:
        """Raise Stale unless this mutation fits the tree under `root`."""
        self._broken(root)
        for test in self.tests:
            if not (root / test).is_file():
                raise Stale(f"there is no {test}")

    def apply(self, root: Path) -> None:
        """Break the rule in the tree under `root`. Raises Stale."""
        broken = self._broken(root)
        (root / self.file).write_text(broken)

    def _broken(self, root: Path) -> str:
        path = root / self.file
        if not path.is_file():
            raise Stale(f"there is no {self.file}")
        before = path.read_text()
        found = before.count(self.text)
        if found != 1:
            raise Stale(f"{self.file} has the text {found} times: {self.text!r}")
        return before.replace(self.text, self.replacement)
