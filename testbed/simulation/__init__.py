"""The model on virtual time: no root, no sockets, and the same seed gives the same run to the last count.

Everything that is model is the code of the real runs. What a real run finds in the kernel is simulated here: links,
TCP, the sockets' readiness, the disk of a server, and time.
"""
