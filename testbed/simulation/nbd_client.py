"""An NBD connection over a simulated socket."""

from __future__ import annotations

from typing import cast

from testbed.nbd.client import NbdClient
from testbed.simulation.stream_socket import StreamSocket


class SimulatedNbdClient(NbdClient):
    """As the real one; only SIOCOUTQ is asked of the simulated TCP."""

    def unacknowledged(self) -> int:
        """Bytes that the peer has not acknowledged."""
        return cast(StreamSocket, self.sock).unacknowledged
