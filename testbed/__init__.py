"""Swap over the network under memory pressure, on emulated hosts with real sockets."""
