"""A machine that swaps to an NBD server of its own. When does it deadlock?

Swap waits for the server, and the server, a task like any other, waits for memory: for its file's page cache, for its
replies, and in direct reclaim for a request that only it could end. The series does not help: what nbd sends from the
reserve comes to a socket that is not SOCK_MEMALLOC, where it is dropped, sent again, and dropped again.

    --expect deadlock                             the series: it stops with the first request sent from the reserve
    --without 14                                  nbd stays out of the reserve: a real-time server mostly survives
    --without 14 --cache writeback                the page cache takes memory too: it survives, though slowly
    --without 14 --no-realtime --expect deadlock  an ordinary server finds no memory for its replies
    --workload-total 64M                          fits in memory, so that nothing waits (and nothing is tested)

`--cache` and `--realtime` are for the script itself; `testbed run` and `testbed simulate` take the others.
"""

import sys
from argparse import BooleanOptionalAction

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology
from testbed.experiment.arguments import Parser
from testbed.experiment.topology import CACHES, Cache


def same_host(cache: Cache = "none", *, realtime: bool = True) -> Topology:
    """One machine with its server, and a neighbour that shows that its network works."""
    topology = Topology("same_host")
    server = topology.add(NbdServer("server", same_host=True, cache=cache, realtime=realtime))
    client = topology.add(SwapClient("client", memory="128M", swap=server))
    neighbour = topology.add(Neighbour("neighbour"))
    topology.connect(client, neighbour)
    topology.workload(client, LinearTouch(processes=8, total="176M"))
    return topology


topology = same_host()

if __name__ == "__main__":
    parser = Parser(prog="same_host.py", add_help=False)
    parser.add_argument("--cache", choices=CACHES, default="none", help="does its file go through the page cache?")
    parser.add_argument("--realtime", action=BooleanOptionalAction, default=True, help="is it a SCHED_FIFO task?")
    options, remaining = parser.parse_known_args(sys.argv[1:])
    same_host(options.cache, realtime=options.realtime).main(remaining)
