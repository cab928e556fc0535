"""A fleet of thin clients on several switches, each with a swap server and a noisy machine: made to be simulated.

`--clients N` and `--servers N` say how many there are (default 1000 and 10), `--pps N` how many frames a second flood
each client (default none); they come with the common options.
"""

import sys

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError, UdpFlood
from testbed.experiment.arguments import Parser

BYSTANDERS = (Bystander(reader="never", count=2), Bystander(reader="faulting", count=1))


def fleet(clients: int = 1000, servers: int = 10, pps: int = 0) -> Topology:
    """So many clients, shared out among so many servers; each is flooded with `pps` frames a second."""
    if not 1 <= servers <= clients <= 60_000 or servers > 256:
        raise TopologyError(f"a fleet has 1 to 256 servers and a client for each, not {clients} for {servers}")
    topology = Topology("thousand_clients")
    for number in range(1, servers + 1):
        server = topology.add(NbdServer(f"server{number}", bandwidth="1M"))
        noise = topology.add(Neighbour(f"noise{number}"))
        thin = [
            topology.add(SwapClient(f"thin{client}", memory="16M", ring=64, swap=server, bystanders=BYSTANDERS))
            for client in range(number, clients + 1, servers)
        ]
        topology.connect(server, noise, *thin)
        for client in thin:
            topology.workload(client, LinearTouch(processes=4, total="18M"))
            if pps:
                topology.flood(noise, client, UdpFlood(pps=pps, size=500))
    return topology


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The fleet that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="thousand_clients.py", add_help=False)
    parser.add_argument("--clients", type=int, default=1000, metavar="N", help="thin clients (default 1000)")
    parser.add_argument("--servers", type=int, default=10, metavar="N", help="swap servers (default 10)")
    parser.add_argument("--pps", type=int, default=0, metavar="N", help="flood of each client (default none)")
    options, rest = parser.parse_known_args(argv)
    try:
        return fleet(options.clients, options.servers, options.pps), rest
    except TopologyError as error:
        parser.error(str(error))


topology = fleet()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    topology.main(remaining)
