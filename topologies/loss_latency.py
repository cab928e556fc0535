"""With how much loss and latency does swap still go on, when does it stall, and does it recover?

From the second second on the client's link loses `--loss P` of all frames (0 to 1, default 0.05) and delays the others
by `--delay S` (default 0.02 s, each way), for `--seconds S` (default 10). A stall under loss is a failure that the
verdict explains; one that stays when the link is clean again would be a deadlock.
"""

import sys

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError
from testbed.experiment.arguments import Parser, duration

BEGIN_S = 2.0


def bad_link(loss: float = 0.05, delay: float = 0.02, seconds: float = 10.0) -> Topology:
    """One client, whose link is bad for so long."""
    topology = Topology("loss_latency")
    server = topology.add(NbdServer("server"))
    client = topology.add(SwapClient("client", memory="24M", swap=server))
    neighbour = topology.add(Neighbour("neighbour"))
    topology.connect(server, client, neighbour)
    topology.workload(client, LinearTouch(processes=8))
    link, end = topology.link_of(client), BEGIN_S + seconds
    topology.at(BEGIN_S, link.delay(seconds=delay), until=end)
    return topology.at(BEGIN_S, link.loss(probability=loss), until=end)


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The link that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="loss_latency.py", add_help=False)
    parser.add_argument("--loss", type=float, default=0.05, metavar="P", help="share of frames (default 0.05)")
    parser.add_argument("--delay", type=float, default=0.02, metavar="S", help="each way (default 0.02 s)")
    parser.add_argument("--seconds", type=duration, default=10.0, metavar="S", help="how long (default 10 s)")
    options, rest = parser.parse_known_args(argv)
    try:
        return bad_link(options.loss, options.delay, options.seconds), rest
    except TopologyError as error:
        parser.error(str(error))


topology = bad_link()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    topology.main(remaining)
