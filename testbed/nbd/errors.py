"""What can go wrong with a connection; the text of each is one clear line for people."""


class NbdError(Exception):
    """The peer refused, or broke the protocol; the connection is of no further use."""


class NbdDisconnected(NbdError):
    """The connection ended while it was still wanted."""
