"""The options of `testbed run`, shared by the command and by topology scripts that are run directly.

A mistake ends the program with one line on standard error and status 2.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from testbed.experiment.errors import CannotRun
from testbed.experiment.faults.kinds import LAYERS
from testbed.experiment.faults.nemesis import MOST_FAULTS, NEMESIS_S, Nemesis
from testbed.experiment.faults.planning import NO_OTHERS, FaultOptions
from testbed.experiment.faults.step import Layer
from testbed.experiment.plan import Overrides
from testbed.experiment.topology import CLIENT_HOSTS, DRIVERS, MOST_PPS, MOST_TASKS, SLAB_ALLOCATORS
from testbed.lab.pcapng import SNAPLEN
from testbed.patches import DEFAULT_PRESET, KERNEL_PRESET, PATCHES, PRESETS, PatchError, enabled
from testbed.size import parse_size

Expected = Literal["pass", "deadlock"]

TIME_LIMIT_S = 1800.0
STALL_LIMIT_S = 10.0


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False, **named})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and exit with status 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run was asked to do. `patches` are the numbers that are on; limits are in seconds.

    `capture` is how many bytes of each frame are captured; None: no capture.
    """

    patches: frozenset[int]
    overrides: Overrides
    seed: int
    time_limit: float = TIME_LIMIT_S
    stall_limit: float = STALL_LIMIT_S
    out: Path | None = None
    capture: int | None = None
    json: bool = False
    expect: Expected = "pass"
    force: bool = False
    trace: bool = False
    topology: str = ""
    argv: tuple[str, ...] = ()
    faults: FaultOptions = NO_OTHERS

    @property
    def without(self) -> list[int]:
        """The patches that are off, in order."""
        return sorted(frozenset(PATCHES) - self.patches)

    def as_arguments(self) -> dict[str, Any]:
        """Everything needed to run it again, for `result.json`; sizes in bytes, None for what the topology decides."""
        return {
            "topology": self.topology,
            "argv": list(self.argv),
            "without": self.without,
            "force": self.force,
            "trace": self.trace,
            "capture": self.capture,
            **asdict(self.overrides),
            "time_limit": self.time_limit,
            "stall_limit": self.stall_limit,
            "seed": self.seed,
            "expect": self.expect,
            **self.faults.as_arguments(),
        }


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add every option of `testbed run` to a parser."""
    add_patch_options(parser)
    add_condition_options(parser)
    parser.add_argument("--trace", action="store_true", help="write the kernel's tracepoints, and a timeline of them")
    parser.add_argument("--expect", choices=("pass", "deadlock"), default="pass", help="outcome for exit status 0")


def add_patch_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that turn patches off."""
    off = parser.add_mutually_exclusive_group()
    off.add_argument("--vanilla", action="store_true", help="turn all 16 patches off")
    off.add_argument("--without", type=numbers, default=(), metavar="N[,N...]", help="turn these patches off")
    parser.add_argument("--force", action="store_true", help="keep patches on although one they build on is off")


def add_condition_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say under which conditions a run takes place, and where its result goes."""
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help=f"the kernel: its patches and the rules of its version (default {DEFAULT_PRESET}; a real one's: its own)",
    )
    parser.add_argument("--host", choices=CLIENT_HOSTS, help="what stands in the place of all clients")
    parser.add_argument("--slab", choices=SLAB_ALLOCATORS, help="slab allocator of all clients")
    parser.add_argument(
        "--driver",
        choices=DRIVERS,
        help="what NICs with linear receive buffers receive into (beside a real kernel: vector, which is its driver)",
    )
    parser.add_argument("--memory", type=_size, metavar="SIZE", help="memory of each client; what is not fixed scales")
    parser.add_argument(
        "--flood", type=count(0, MOST_PPS), metavar="PPS", help="frames a second of each flood; 0: no flood"
    )
    parser.add_argument("--flood-size", type=count(1), metavar="BYTES", help="whole Ethernet frame, without checksum")
    parser.add_argument("--mtu", type=count(576), metavar="BYTES", help="largest packet on each client's link")
    parser.add_argument("--bystander-buffer", type=_size, metavar="SIZE", help="receive buffer of each bystander")
    parser.add_argument("--min-free-kbytes", type=count(1), metavar="N", help="size of the reserve, in KiB")
    parser.add_argument("--workload-total", type=_size, metavar="SIZE", help="memory that the tasks of a client touch")
    parser.add_argument("--tasks", type=count(1, MOST_TASKS), metavar="N", help="tasks of each client")
    parser.add_argument("--capture", action="store_true", help="write every frame of each host's link (pcapng)")
    parser.add_argument(
        "--capture-snaplen",
        type=count(1, 65535),
        metavar="BYTES",
        help=f"kept of each frame (default {SNAPLEN})",
    )
    parser.add_argument(
        "--time-limit", type=duration, default=TIME_LIMIT_S, metavar="S", help="end the run (default %(default)s s)"
    )
    parser.add_argument(
        "--stall-limit",
        type=duration,
        default=STALL_LIMIT_S,
        metavar="S",
        help="how long swap may stand still (default %(default)s s)",
    )
    _add_fault_options(parser)
    parser.add_argument("--seed", type=count(0), metavar="N", help="for whatever is random (default: a new one)")
    parser.add_argument(
        "--out", type=parse_path, metavar="DIR", help="where to put the run (default: runs/NAME-TIME-PID)"
    )
    parser.add_argument("--json", action="store_true", help="print result.json on standard output and nothing else")


def _add_fault_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is to go wrong."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--schedule",
        type=parse_path,
        metavar="FILE",
        help="the faults of an earlier run (its directory, log or result)",
    )
    source.add_argument(
        "--nemesis",
        type=_layers,
        nargs="?",
        const=LAYERS,
        metavar="LAYER[,...]",
        help=f"random faults, drawn from the seed: all (default), or some of {', '.join(LAYERS)}",
    )
    parser.add_argument(
        "--nemesis-duration", type=duration, metavar="S", help=f"all of them within this time (default {NEMESIS_S} s)"
    )
    parser.add_argument(
        "--nemesis-faults", type=count(1, MOST_FAULTS), metavar="N", help="how many (default: 0.6 a second)"
    )


def _fault_options(space: argparse.Namespace) -> FaultOptions:
    nemesis = space.nemesis and Nemesis(space.nemesis, space.nemesis_duration or NEMESIS_S, space.nemesis_faults)
    return FaultOptions(space.schedule, nemesis)


def _layers(text: str) -> tuple[Layer, ...]:
    """Layers in a list such as link,process."""
    if text == "all":
        return LAYERS
    words = text.split(",")
    if unknown := [word for word in words if word not in LAYERS]:
        raise argparse.ArgumentTypeError(f"there is no layer {unknown[0]!r}: choose from all, {', '.join(LAYERS)}")
    return tuple(layer for layer in LAYERS if layer in words)


def options_from(space: argparse.Namespace, topology: str, argv: Sequence[str]) -> RunOptions:
    """The options in a parsed command line. Raises PatchError, and CannotRun for options that contradict each other."""
    _check_together(space)
    return RunOptions(
        patches=_patches(space),
        overrides=Overrides(
            memory=space.memory,
            flood=space.flood,
            flood_size=space.flood_size,
            bystander_buffer=space.bystander_buffer,
            min_free_kbytes=space.min_free_kbytes,
            workload_total=space.workload_total,
            tasks=space.tasks,
            preset=_preset(space),
            slab=space.slab,
            driver=space.driver or ("vector" if space.host == "kernel" else None),
            host=space.host,
            mtu=space.mtu,
        ),
        seed=secrets.randbelow(1 << 31) if space.seed is None else space.seed,
        time_limit=space.time_limit,
        stall_limit=space.stall_limit,
        out=space.out,
        capture=(space.capture_snaplen or SNAPLEN) if space.capture else None,
        json=space.json,
        expect=space.expect,
        force=space.force,
        trace=space.trace,
        faults=_fault_options(space),
        topology=topology,
        argv=tuple(argv),
    )


def _check_together(space: argparse.Namespace) -> None:
    """Raises CannotRun for an option that would have no effect beside the others."""
    for name, other in (("nemesis_duration", "nemesis"), ("nemesis_faults", "nemesis"), ("capture_snaplen", "capture")):
        if getattr(space, name) is not None and not getattr(space, other):
            raise CannotRun(f"--{name.replace('_', '-')} has no effect without --{other}")
    if space.host == "kernel" and space.preset not in (None, KERNEL_PRESET):
        raise CannotRun(f"--preset {space.preset} has no effect on --host kernel: it has its own version's rules")


def _preset(space: argparse.Namespace) -> str:
    """Whose rules are followed: a real kernel's are those of its version, whatever patches are off."""
    if space.host == "kernel":
        return KERNEL_PRESET
    return space.preset or ("vanilla" if space.vanilla else DEFAULT_PRESET)


def _patches(space: argparse.Namespace) -> frozenset[int]:
    """The patches that are on: the preset's, less those turned off. Raises PatchError."""
    preset = space.preset or DEFAULT_PRESET
    if space.vanilla or not PRESETS[preset].patches:
        if space.without:
            raise PatchError(f"--without turns nothing off: preset {preset} has no patch on")
        return enabled(PATCHES)
    return enabled(space.without, force=space.force)


def parse_run(argv: Sequence[str] | None, topology: str) -> RunOptions:
    """The options of a topology script that is run directly; exits with one line and status 2 for a mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog=Path(topology).name or "testbed", description="Run this topology.")
    add_run_options(parser)
    space = parser.parse_args(words)
    try:
        return options_from(space, topology, words)
    except (CannotRun, PatchError) as error:
        parser.error(str(error))


def parse_path(text: str) -> Path:
    """A path; the empty text is none, whatever `Path` makes of it."""
    if not text:
        raise argparse.ArgumentTypeError("an empty path")
    return Path(text)


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size == 0:
        raise argparse.ArgumentTypeError("a size must be more than 0")
    return size


def count(least: int, most: int | None = None) -> Any:
    """A converter of whole numbers from `least` on, up to `most`."""
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, not {number}")
        return number

    return parse


def duration(text: str) -> float:
    """Seconds, more than 0."""
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds and less than a million, not {text}")
    return seconds


def numbers(text: str) -> tuple[int, ...]:
    """Patch numbers in a list such as 4,9."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of patch numbers, such as 4,9") from None
