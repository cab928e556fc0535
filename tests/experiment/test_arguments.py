"""The command line of a run: every option lands in the options, every mistake is one line and status 2."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import msgspec
import pytest

from testbed import Topology
from testbed.experiment.arguments import RunOptions, parse_run
from testbed.experiment.plan import Overrides
from testbed.patches import PATCHES

ALL = frozenset(PATCHES)


def parse(*words: str) -> RunOptions:
    return parse_run(words, "topologies/swap_flood.py")


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as raised:
        parse(*words)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("swap_flood.py: ")
    return err


def test_the_defaults() -> None:
    options = parse()
    assert options.patches == ALL
    assert options.overrides == Overrides()
    assert (options.expect, options.json, options.out, options.without) == ("pass", False, None, [])
    assert options.stall_limit > 0 < options.time_limit


def test_every_option() -> None:
    words = shlex.split(
        "--without 15,16 --memory 32M --flood 5000 --flood-size 64 --bystander-buffer 1M --min-free-kbytes 512 "
        "--workload-total 128M --tasks 4 --time-limit 60 --stall-limit 2.5 --seed 7 --out here --json --expect deadlock"
    )
    options = parse(*words)
    assert options.without == [15, 16]
    assert options.overrides == Overrides(
        memory=32 << 20,
        flood=5000,
        flood_size=64,
        bystander_buffer=1 << 20,
        min_free_kbytes=512,
        workload_total=128 << 20,
        tasks=4,
    )
    assert (options.time_limit, options.stall_limit, options.seed) == (60.0, 2.5, 7)
    assert (options.out, options.json, options.expect) == (Path("here"), True, "deadlock")
    assert options.argv == tuple(words)


def test_the_arguments_of_a_result_are_enough_to_run_it_again() -> None:
    first = parse("--without", "15,16", "--memory", "32M", "--seed", "7")
    told = msgspec.json.decode(msgspec.json.encode(first.as_arguments()))
    assert told["topology"] == "topologies/swap_flood.py"
    assert parse(*told["argv"]) == first
    assert (told["without"], told["memory"], told["seed"]) == ([15, 16], 32 << 20, 7)


def test_without_a_seed_every_run_has_its_own() -> None:
    assert len({parse().seed for _ in range(5)}) > 1


def test_vanilla_turns_all_off_and_force_keeps_what_rests_on_nothing() -> None:
    assert parse("--vanilla").patches == frozenset()
    assert parse("--without", "15", "--force").patches == ALL - {15}


def test_the_rules_of_a_preset_hold_with_all_patches_off_too() -> None:
    options = parse("--vanilla", "--preset", "6.1")
    assert (options.patches, options.overrides.preset) == (frozenset(), "6.1")
    assert parse("--vanilla").overrides.preset == "vanilla"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--without", "17"], "no patch 17"),
        (["--without", "4;9"], "'4;9' is not a list of patch numbers"),
        (["--without", "15"], "patch 16 builds on patch 15"),
        (["--vanilla", "--without", "3"], "not allowed with"),
        (["--preset", "vanilla", "--without", "3"], "--without turns nothing off: preset vanilla has no patch on"),
        (["--memory", "64X"], "'64X' is not a size"),
        (["--memory", "0"], "more than 0"),
        (["--flood", "-1"], "at least 0"),
        (["--flood", "10000001"], "at most 10000000"),
        (["--flood", "many"], "'many' is not a whole number"),
        (["--tasks", "0"], "at least 1"),
        (["--tasks", "1025"], "at most 1024"),
        (["--out", ""], "--out: an empty path"),
        (["--schedule", ""], "--schedule: an empty path"),
        (["--nemesis", "--nemesis-faults", "1001"], "at most 1000"),
        (["--nemesis-faults", "3"], "--nemesis-faults has no effect without --nemesis"),
        (["--nemesis-duration", "3"], "--nemesis-duration has no effect without --nemesis"),
        (["--capture-snaplen", "64"], "--capture-snaplen has no effect without --capture"),
        (["--host", "kernel", "--preset", "v9"], "--preset v9 has no effect on --host kernel"),
        (["--stall-limit", "0"], "more than 0 seconds"),
        (["--stall-limit", "nan"], "more than 0 seconds"),
        (["--time-limit", "soon"], "'soon' is not a number"),
        (["--expect", "luck"], "invalid choice"),
        (["--mem", "64M"], "unrecognized arguments"),
        (["extra"], "unrecognized arguments: extra"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in complaint(capsys, *words)


def test_a_script_reads_its_own_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["topologies/lone.py", "--without", "99"])
    with pytest.raises(SystemExit) as raised:
        Topology("lone").main()
    assert raised.value.code == 2
    assert "lone.py: there is no patch 99" in capsys.readouterr().err
