"""The swap test of the series' cover letter: eight tasks per CPU map four times RAM, write it, and read it linearly.

Run directly, it makes the letter's four cases, SLAB and SLUB without and with the series, and prints their table;
`--simulate` does that on virtual time, `--host kernel` on a real kernel and on the model, `--memory` says how much RAM
(the letter: 2G; default 64M). With `testbed run` it is a topology like any other. `--cpus N` (default 2) and
`--passes N` (default 1, reads of everything) go with both.
"""

import sys

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError
from testbed.experiment.arguments import Parser, count
from testbed.experiment.cover_letter import main

TASKS_PER_CPU = 8


def swap_test(cpus: int = 2, passes: int = 1) -> Topology:
    """The letter's machine with so many CPUs, and its server; the neighbour only shows that the network works."""
    topology = Topology("cover_letter")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", memory="64M", swap=server))
    neighbour = topology.add(Neighbour("neighbour"))
    topology.connect(server, client, neighbour)
    topology.workload(client, LinearTouch(processes=TASKS_PER_CPU * cpus, passes=passes))
    return topology


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The test that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="cover_letter.py", add_help=False)
    parser.add_argument("--cpus", type=count(1), default=2, metavar="N", help="CPUs of the machine (default 2)")
    parser.add_argument("--passes", type=count(1), default=1, metavar="N", help="reads of everything (default 1)")
    options, rest = parser.parse_known_args(argv)
    try:
        return swap_test(options.cpus, options.passes), rest
    except TopologyError as error:
        parser.error(str(error))


topology = swap_test()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    raise SystemExit(main(topology, remaining))
