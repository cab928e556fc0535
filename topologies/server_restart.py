"""Does swap survive a restart of its server, and does it lose pages?

The server is killed while its client is short of memory, and started again on the same port a moment later. With its
data kept (as a disk would) no page may be lost; with `--data lost` (as a server in memory would) the verdict names the
pages that came back wrong. `--down S` says how long it is away (default 1 s), `--at S` when it goes (default 2 s), and
`--patience S` how long the client waits for it before its requests fail (nbd_dead_conn_timeout, default 30 s).
"""

import sys

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError
from testbed.experiment.arguments import Parser, duration


def restart(data: str = "kept", at: float = 2.0, down: float = 1.0, patience: float = 30.0) -> Topology:
    """One client, and a server that is away from `at` for `down` seconds."""
    topology = Topology("server_restart")
    server = topology.add(NbdServer("server", bandwidth="32M"))
    client = topology.add(SwapClient("client", memory="32M", swap=server, nbd_dead_conn_timeout=patience))
    neighbour = topology.add(Neighbour("neighbour"))
    topology.connect(server, client, neighbour)
    topology.workload(client, LinearTouch(processes=8))
    process = topology.process_of(server)
    return topology.at(at, process.kill(data=data)).at(at + down, process.restart())


def from_arguments(argv: list[str]) -> tuple[Topology, list[str]]:
    """The restart that the command line asks for, and the words that are not about that."""
    parser = Parser(prog="server_restart.py", add_help=False)
    parser.add_argument("--data", choices=("kept", "lost"), default="kept", help="what the server finds again")
    parser.add_argument("--at", type=duration, default=2.0, metavar="S", help="when it is killed (default 2 s)")
    parser.add_argument("--down", type=duration, default=1.0, metavar="S", help="how long it is away (default 1 s)")
    parser.add_argument("--patience", type=duration, default=30.0, metavar="S", help="nbd_dead_conn_timeout (30 s)")
    options, rest = parser.parse_known_args(argv)
    try:
        return restart(options.data, options.at, options.down, options.patience), rest
    except TopologyError as error:
        parser.error(str(error))


topology = restart()

if __name__ == "__main__":
    topology, remaining = from_arguments(sys.argv[1:])
    topology.main(remaining)
