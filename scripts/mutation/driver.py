"""Break one rule after the other, each in a copy of the tree, and run the tests that are to protect it.

Red (a test failed) is good. Green means that nothing protects the rule, stale that the table no longer fits the
tree, broken that pytest could not run the tests at all. Status 0: all red; 1: not all; 2: the tests fail as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.mutation.mutation import Mutation, Stale
from scripts.mutation.table import MUTATIONS
from testbed.experiment.arguments import Parser
from testbed.experiment.report import wide

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("testbed", "tests", "scripts", "topologies", "pyproject.toml")
"""What the tests need of a checkout."""
COLOURS = {"red": "green", "green": "red", "stale": "yellow", "broken": "yellow"}
TESTS_FAILED = 1


def copy_tree(target: Path) -> None:
    """Copy what the tests need to `target`, with what has been compiled already."""
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            shutil.copy2(source, target / name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run these test files until one fails: pytest's status, and its last words."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=60", *tests]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    words = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, words[0] if words else (done.stdout + done.stderr).strip().rpartition("\n")[2]


def judge(mutation: Mutation) -> tuple[str, str]:
    """Red, green, stale or broken, and which test failed or what is wrong."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as directory:
        tree = Path(directory)
        copy_tree(tree)
        try:
            mutation.check(tree)
            mutation.apply(tree)
        except Stale as stale:
            return "stale", str(stale)
        status, words = run_tests(tree, mutation.tests)
    if status == 0:
        return "green", f"no test of {', '.join(mutation.tests)} fails"
    if status != TESTS_FAILED:
        return "broken", words
    return "red", words.removeprefix("FAILED ").partition(" - ")[0].partition("[")[0]


def passes_unbroken(mutations: Sequence[Mutation]) -> str | None:
    """None if every test file named passes as it is; else the first failure."""
    tests = sorted({test for mutation in mutations for test in mutation.tests if (ROOT / test).is_file()})
    with tempfile.TemporaryDirectory(prefix="mutate-") as directory:
        copy_tree(Path(directory))
        status, words = run_tests(Path(directory), tests)
    return None if status == 0 else words


def judge_all(mutations: Sequence[Mutation], jobs: int) -> dict[str, tuple[str, str]]:
    """The outcome of each mutation by its name, `jobs` at a time."""
    outcomes = {}
    with ThreadPoolExecutor(jobs) as pool:
        for mutation, outcome in zip(mutations, pool.map(judge, mutations), strict=True):
            outcomes[mutation.name] = outcome
            print(f"{outcome[0]:6} {mutation.name}", file=sys.stderr, flush=True)
    return outcomes


def show(console: Console, outcomes: dict[str, tuple[str, str]], seconds: float) -> int:
    """Print the table; returns the exit status."""
    table = Table(title="mutations", title_justify="left")
    for column in ("rule", "", "test that failed"):
        table.add_column(column, overflow="fold")
    for name, (colour, words) in outcomes.items():
        table.add_row(escape(name), f"[{COLOURS[colour]}]{colour}[/]", escape(words))
    console.print(table)
    counts = Counter(colour for colour, _words in outcomes.values())
    summary = ", ".join(f"{counts[colour]} {colour}" for colour in COLOURS)
    console.print(f"{len(outcomes)} rules broken: {summary}, in {seconds:.0f} s")
    return 0 if counts["red"] == len(outcomes) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of scripts/mutate."""
    parser = Parser(prog="scripts/mutate", description="Break each rule in turn and see a test fail.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="rules to break (default: all; see --list)")
    parser.add_argument("--list", action="store_true", help="print the name of each rule, and what it says")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="how many at a time")
    space = parser.parse_args(argv)
    if space.list:
        for mutation in MUTATIONS:
            print(f"{mutation.name}: {mutation.rule}")
        return 0
    known = {mutation.name: mutation for mutation in MUTATIONS}
    if unknown := [name for name in space.names if name not in known]:
        parser.error(f"there is no rule {unknown[0]}: see scripts/mutate --list")
    if space.jobs < 1:
        parser.error(f"--jobs must be at least 1, not {space.jobs}")
    chosen = [known[name] for name in space.names] or list(MUTATIONS)
    start = time.monotonic()
    if failure := passes_unbroken(chosen):
        print(f"scripts/mutate: the tests fail with nothing broken: {failure}", file=sys.stderr)
        return 2
    outcomes = judge_all(chosen, space.jobs)
    return show(wide(Console()), outcomes, time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main())
