"""One diskless client swaps over NBD while a neighbour floods it with UDP that nobody reads."""

from testbed import LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood

topology = Topology("swap_flood")
server = topology.add(NbdServer("server"))
client = topology.add(SwapClient("client", memory="64M", swap=server))
noise = topology.add(Neighbour("noise"))
topology.connect(server, client, noise)
topology.workload(client, LinearTouch(processes=16))
topology.flood(noise, client, UdpFlood(pps=10_000, size=1000))

if __name__ == "__main__":
    topology.main()
