"""A classroom: thin clients that all swap to one server, while one machine floods each of them.

`--clients N` (default 3) says how many thin clients there are. It may come before or after the common options.
"""

import argparse
import sys

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, TopologyError, UdpFlood


def classroom(clients: int) -> Topology:
    """A lab with this many thin clients."""
    if clients < 1:
        raise TopologyError(f"ltsp_lab: a lab needs at least 1 client, not {clients}")
    lab = Topology("ltsp_lab")
    server = lab.add(NbdServer("server"))
    noise = lab.add(Neighbour("noise"))
    thin = [lab.add(SwapClient(f"thin{number}", memory="32M", swap=server)) for number in range(1, clients + 1)]
    lab.connect(server, noise, *thin)
    for client in thin:
        lab.workload(client, LinearTouch(processes=8))
        lab.flood(noise, client, UdpFlood(pps=5_000, size=1000))
    return lab


own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
own.add_argument("--clients", type=int, default=3, metavar="N", help="thin clients (default 3)")

topology = classroom(3)

if __name__ == "__main__":
    options, common = own.parse_known_args()
    try:
        topology = classroom(options.clients)
    except TopologyError as error:
        sys.exit(f"testbed: {error}")
    topology.main(common)
