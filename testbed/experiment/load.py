"""A topology from the script that declares it.

The script is run under a name that is not `__main__`, so that its last lines do not start a run, and it leaves a
`topology`. A script with options of its own has `from_arguments(argv)`, which returns the topology and the words it
did not use.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from testbed.experiment.errors import CannotRun
from testbed.experiment.topology import Topology, TopologyError


def load_topology(path: Path, extra: Sequence[str] = ()) -> tuple[Topology, list[str]]:
    """The topology in the file at `path`, and those of the `extra` words that it has no use for. Raises CannotRun."""
    module = _execute(path)
    words = list(extra)
    try:
        if words and (build := getattr(module, "from_arguments", None)) is not None:
            topology, words = build(words)
        else:
            topology = getattr(module, "topology", None)
    except TopologyError as error:
        raise CannotRun(f"{path}: {error}") from None
    except Exception as error:
        raise CannotRun(_described(error, path)) from None
    if not isinstance(topology, Topology):
        raise CannotRun(f"{path}: it must set topology = Topology(...)")
    return topology, words


def _execute(path: Path) -> ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise CannotRun(f"{path}: {error.strerror or error}") from None
    module = ModuleType(f"topology_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise CannotRun(f"{path}{line}: {error.msg}") from None
    except ValueError as error:
        raise CannotRun(f"{path}{_line(error, path)}: {error}") from None
    except SystemExit as error:
        raise CannotRun(f"{path}: it ended while it was loaded, with status {error.code}") from None
    except Exception as error:
        raise CannotRun(_described(error, path)) from None
    return module


def _described(error: Exception, path: Path) -> str:
    """An error of the script's own, in one line."""
    return f"{path}{_line(error, path)}: " + " ".join(f"{type(error).__name__}: {error}".split())


def _line(error: BaseException, path: Path) -> str:
    """Where in the script an error came from, for people."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""
