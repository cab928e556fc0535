"""Two blades, each swapping to the other's server, while a neighbour floods both.

A blade is two hosts here: the emulated machine that swaps, and the server that lends its memory to the other blade.
"""

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood

BYSTANDERS = (Bystander(reader="never", count=3), Bystander(reader="faulting", count=2))

topology = Topology("blade_pair")
server_a = topology.add(NbdServer("server_a", bandwidth="24M"))
server_b = topology.add(NbdServer("server_b", bandwidth="24M"))
blade_a = topology.add(SwapClient("blade_a", memory="48M", swap=server_b, gso=False, bystanders=BYSTANDERS))
blade_b = topology.add(SwapClient("blade_b", memory="48M", swap=server_a, gso=False, bystanders=BYSTANDERS))
noise = topology.add(Neighbour("noise"))
topology.connect(server_a, server_b, blade_a, blade_b, noise)
for blade in (blade_a, blade_b):
    topology.workload(blade, LinearTouch(processes=8))
    topology.flood(noise, blade, UdpFlood(pps=20_000, size=1000))

if __name__ == "__main__":
    topology.main()
