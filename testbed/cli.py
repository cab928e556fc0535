"""The `testbed` command. Ctrl-C is one line at any moment, also while the modules of a command are still imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        from testbed import commands

        return commands.run(argv)
    except KeyboardInterrupt:
        print("testbed: interrupted", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
