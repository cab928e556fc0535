"""One diskless client swaps over NBD and nothing disturbs it."""

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology

topology = Topology("swap_quiet")
server = topology.add(NbdServer("server"))
client = topology.add(SwapClient("client", memory="64M", swap=server))
neighbour = topology.add(Neighbour("neighbour"))
topology.connect(server, client, neighbour)
topology.workload(client, LinearTouch(processes=16))

if __name__ == "__main__":
    topology.main()
