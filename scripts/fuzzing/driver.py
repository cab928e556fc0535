"""Run atheris, a coverage-guided fuzzer, on one of the targets: some 15,000 inputs a second.

Atheris ends the process when it is done, so each run is a process of its own; a crash leaves the input in a file
crash-... in the current directory and ends with a status other than 0.
"""

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["testbed.nbd"]):
    from scripts.fuzzing.seeds import PORTIONS, SEEDS
    from scripts.fuzzing.targets import TARGETS

MAX_LENGTH = 4096  # bytes of an input
TIMEOUT = 10  # seconds; an input that takes longer is a hang
MEMORY = 1024  # MiB; a process that needs more is a leak


def main() -> None:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Feed a protocol's core malformed input.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=100_000, help="inputs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: another each time)")
    parser.add_argument("--corpus", type=Path, help="keep what the fuzzer has learned in this directory")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = arguments.corpus or Path(scratch)
        corpus.mkdir(parents=True, exist_ok=True)
        for number, (first, seed) in enumerate(product(PORTIONS, SEEDS[arguments.target])):
            (corpus / f"seed-{number}").write_bytes(bytes([first]) + seed)
        how = (f"-runs={arguments.runs}", f"-seed={arguments.seed}", "-print_final_stats=1")
        limits = (f"-max_len={MAX_LENGTH}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}")
        atheris.Setup([sys.argv[0], str(corpus), *how, *limits], TARGETS[arguments.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
