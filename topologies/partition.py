"""How long may the network between a client and its swap server be gone?

Two seconds into the workload the client's link is cut for `--seconds S` (default 5). The client has to wait, however
long that is; what is looked at is whether it goes on when the link is back.
"""

import sys

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError, UdpFlood
from testbed.experiment.arguments import Parser, duration

BEGIN_S = 2.0


def partition(seconds: float = 5.0) -> Topology:
    """One flooded client, whose link is cut for so long."""
    topology = Topology("partition")
    server = topology.add(NbdServer("server", bandwidth="24M"))
    bystanders = (Bystander(count=2), Bystander(reader="faulting", count=2))
    client = topology.add(SwapClient("client", memory="32M", swap=server, gso=False, bystanders=bystanders))
    noise = topology.add(Neighbour("noise"))
    topology.connect(server, client, noise)
    topology.workload(client, LinearTouch(processes=8))
    topology.flood(noise, client, UdpFlood(pps=10_000, size=1000))
    return topology.at(BEGIN_S, topology.link_of(client).partition(), until=BEGIN_S + seconds)


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The cut that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="partition.py", add_help=False)
    parser.add_argument("--seconds", type=duration, default=5.0, metavar="S", help="how long (default 5 s)")
    options, rest = parser.parse_known_args(argv)
    try:
        return partition(options.seconds), rest
    except TopologyError as error:
        parser.error(str(error))


topology = partition()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    topology.main(remaining)
