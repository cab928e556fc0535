"""A flood that a kernel with the series survives and one without does not: on the model, and on a real kernel.

Three sockets that nobody reads hold what the flood brings, and two whose readers must fault in pages of their own first
go on to ask for memory when those are full. `--host kernel` runs it on User Mode Linux. Without the series
(`--vanilla`) swap stops for good on both. The server is as slow as a disk, so that pages wait to be written however
fast the machine; and the flood comes a second after the first of them, when both hosts are at it: a real guest says so
later than the model, and each tenth of a second would be two thousand frames.
"""

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood

topology = Topology("kernel_flood")
server = topology.add(NbdServer("server", bandwidth="32M"))
client = topology.add(
    SwapClient(
        "client",
        memory="128M",
        swap=server,
        gso=False,
        bystanders=[Bystander(reader="never", buffer="16M"), Bystander(reader="faulting", count=2)],
    )
)
noise = topology.add(Neighbour("noise"))
topology.connect(server, client, noise)
topology.workload(client, LinearTouch(processes=8, total="224M"))
topology.flood(noise, client, UdpFlood(pps=20_000, size=1000, start="steady"))

if __name__ == "__main__":
    topology.main()
