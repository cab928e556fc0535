"""Does one client that thrashes starve the others on the same swap server?

`--clients N` (default 4) swap to one server. All but the last have four tasks and touch one and a half times their
memory; the last one has `--noisy-tasks N` (default 16) and goes through four times its memory twice. The line
"slowest / fastest client" gives pages a second, and their ratio; compare `--noisy-tasks 4`, and `clients` in
result.json.
"""

import sys

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError
from testbed.experiment.arguments import Parser, count

MEMORY = 32 << 20


def shared_server(clients: int = 4, noisy_tasks: int = 16) -> Topology:
    """So many clients of one server, the last of which thrashes."""
    if not 2 <= clients <= 64:
        raise TopologyError(f"a noisy client needs company: 2 to 64 clients, not {clients}")
    topology = Topology("noisy_client")
    server = topology.add(NbdServer("server"))
    neighbour = topology.add(Neighbour("neighbour"))
    names = [*(f"quiet{number}" for number in range(1, clients)), "noisy"]
    hosts = [topology.add(SwapClient(name, memory=MEMORY, swap=server)) for name in names]
    topology.connect(server, neighbour, *hosts)
    for host in hosts[:-1]:
        topology.workload(host, LinearTouch(processes=4, total=MEMORY * 3 // 2, passes=2))
    topology.workload(hosts[-1], LinearTouch(processes=noisy_tasks, total=4 * MEMORY, passes=2))
    return topology


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The clients that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="noisy_client.py", add_help=False)
    parser.add_argument("--clients", type=count(2), default=4, metavar="N", help="in all (default 4)")
    parser.add_argument("--noisy-tasks", type=count(1), default=16, metavar="N", help="of the last (default 16)")
    options, rest = parser.parse_known_args(argv)
    try:
        return shared_server(options.clients, options.noisy_tasks), rest
    except TopologyError as error:
        parser.error(str(error))


topology = shared_server()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    topology.main(remaining)
