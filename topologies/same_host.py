"""A machine that swaps to an NBD server of its own. When does it deadlock?

Swap waits for the server, and the server, an ordinary task, waits for memory: its file's page cache and its replies
take some, and there may be none before a page has been swapped out.

    testbed simulate topologies/same_host.py --vanilla        # page cache
    testbed simulate topologies/same_host.py                  # the series: what nbd sends from the reserve is dropped
"""

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology

topology = Topology("same_host")
server = topology.add(NbdServer("server", same_host=True))
client = topology.add(SwapClient("client", memory="32M", swap=server))
neighbour = topology.add(Neighbour("neighbour"))
topology.connect(client, neighbour)
topology.workload(client, LinearTouch(processes=8))

if __name__ == "__main__":
    topology.main()
