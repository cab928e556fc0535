"""A simulated host that swaps, as the runner sees it: commands in, messages out."""

from __future__ import annotations

import asyncio

from testbed.hosts.emulated_client import SAMPLE_INTERVAL, EmulatedClient
from testbed.hosts.messages import Command, Failed, Message, Ready
from testbed.hosts.plan import ClientPlan
from testbed.lab.errors import LabError
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.errors import NbdError
from testbed.simulation.edge import SimulatedEdge


class SimulatedClient:
    """Runs the client's models as a task of the running loop."""

    def __init__(
        self,
        plan: ClientPlan,
        patches: frozenset[int],
        seed: int,
        edge: SimulatedEdge,
        *,
        page_bytes: int = PAGE_SIZE,
        sample_interval: float = SAMPLE_INTERVAL,
    ) -> None:
        self.name = plan.name
        self.edge = edge
        self.ready = False
        self._said: list[Message] = []
        self._client = EmulatedClient(
            *(plan, patches, seed, edge, self._say),
            page_bytes=page_bytes,
            sample_interval=sample_interval,
        )
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._client.run()
        except (LabError, NbdError) as error:
            self._say(Failed(self.name, str(error)))

    def _say(self, message: Message) -> None:
        self.ready |= isinstance(message, (Ready, Failed))
        self._said.append(message)

    def send(self, command: Command) -> bool:
        """Obey the runner."""
        self._loop.call_soon(self._client.obey, command)
        return True

    def messages(self) -> list[Message]:
        """What was said since the last call. Raises what ended the client, if it was a mistake of ours."""
        if self._task.done():
            self._task.result()
        said, self._said = self._said, []
        return said
