"""One diskless client swaps over NBD while a neighbour floods its other sockets with UDP.

Three of the sockets nobody reads, two are read by tasks that must fault in their own pages first, one is read at once.
Frames are plain 1,500-byte ones and the server is as slow as a disk: what decides is how fast the flood takes memory
compared with how fast swap gives it back, and that must not depend on the machine this runs on.
"""

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood

topology = Topology("swap_flood")
server = topology.add(NbdServer("server", bandwidth="32M"))
client = topology.add(
    SwapClient(
        "client",
        memory="64M",
        swap=server,
        gso=False,
        bystanders=[
            Bystander(reader="never", count=3),
            Bystander(reader="faulting", count=2),
            Bystander(reader="prompt", count=1),
        ],
    )
)
noise = topology.add(Neighbour("noise"))
topology.connect(server, client, noise)
topology.workload(client, LinearTouch(processes=16))
topology.flood(noise, client, UdpFlood(pps=40_000, size=1000))

if __name__ == "__main__":
    topology.main()
