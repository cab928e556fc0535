"""A diskless host of a virtual machine swaps over NBD while somebody floods the machine.

What is for the machine is forwarded by a bridge, not received: no socket filter stands before it, and a frame holds its
memory until the machine's emulator has read it, which must fault in its own pages first. Two frames take a page, so 100
of them a fifth of what 64M has below min; the 500 that a tap interface holds by default may take all of it.
"""

from testbed import Bystander, LinearTouch, NbdServer, Neighbour, SwapClient, Topology, UdpFlood, VirtualMachine

topology = Topology("virtual_machine")
server = topology.add(NbdServer("server", bandwidth="32M"))
machine = VirtualMachine("guest", reader="faulting", tx_queue_len=100)
client = topology.add(
    SwapClient(
        "client",
        memory="64M",
        swap=server,
        gso=False,
        bystanders=[Bystander(reader="never", count=3)],
        virtual_machines=[machine],
    )
)
noise = topology.add(Neighbour("noise"))
topology.connect(server, client, noise)
topology.workload(client, LinearTouch(processes=16))
topology.flood(noise, client, UdpFlood(pps=20_000, size=1000))
topology.flood(noise, machine, UdpFlood(pps=20_000, size=1000))

if __name__ == "__main__":
    topology.main()
