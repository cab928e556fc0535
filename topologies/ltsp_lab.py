"""A classroom: thin clients that all swap to one server, while one machine floods each of them.

`--clients N` says how many thin clients there are (default 3); it comes with the common options.
"""

import sys

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError, UdpFlood
from testbed.experiment.arguments import Parser

BYSTANDERS = (Bystander(reader="never", count=3), Bystander(reader="faulting", count=2))
FLOOD_PPS = 45_000
"""Frames a second in all: every client gets its share, as on one uplink."""


def classroom(clients: int = 3) -> Topology:
    """A lab with this many thin clients."""
    if not 1 <= clients <= 200:
        raise TopologyError(f"a lab has 1 to 200 clients, not {clients}")
    lab = Topology("ltsp_lab")
    server = lab.add(NbdServer("server", bandwidth="16M"))
    noise = lab.add(Neighbour("noise"))
    thin = [
        lab.add(SwapClient(f"thin{number}", memory="32M", swap=server, gso=False, bystanders=BYSTANDERS))
        for number in range(1, clients + 1)
    ]
    lab.connect(server, noise, *thin)
    for client in thin:
        lab.workload(client, LinearTouch(processes=8))
        lab.flood(noise, client, UdpFlood(pps=FLOOD_PPS // clients, size=1000))
    return lab


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The lab that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="ltsp_lab.py", add_help=False)
    parser.add_argument("--clients", type=int, default=3, metavar="N", help="thin clients (default 3)")
    options, rest = parser.parse_known_args(argv)
    try:
        return classroom(options.clients), rest
    except TopologyError as error:
        parser.error(str(error))


topology = classroom()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    topology.main(remaining)
