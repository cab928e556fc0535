"""Third-party NBD servers (nbdkit, nbd-server, qemu-nbd) as swap servers, started in a host's namespace."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import TracebackType

from testbed.hosts.plan import ServerPlan
from testbed.lab.errors import LabError
from testbed.lab.namespace import NetworkNamespace
from testbed.lab.program import Program, run_program
from testbed.nbd.programs import server_command

OWN_PIDS = ("unshare", "--pid", "--fork", "--kill-child")
"""A pid namespace of its own: a server that puts itself in the background still ends with the program we started."""
START_TIMEOUT_S = 10.0
POLL_S = 0.02


class ServerPrograms:
    """The programs of a run; their files and output go into `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs: list[Program] = []

    def start(self, plan: ServerPlan, namespace: NetworkNamespace) -> dict[str, str]:
        """Start one program for each of the host's areas and wait until it accepts connections. Raises LabError.

        Returns the export name to ask for, by client.
        """
        exports = {}
        for area in plan.areas:
            directory = self.directory / f"{plan.name}-{area.port}"
            directory.mkdir()
            try:
                command = server_command(
                    plan.program, address=area.address, port=area.port, size=area.bytes, directory=directory
                )
            except ValueError as error:
                raise LabError(f"{plan.name}: {error}") from error
            for file in command.files:
                file.write()
            program = run_program((*OWN_PIDS, *command.argv), namespace, output=directory / "output")
            self.programs.append(program)
            self._await(plan, program, namespace, (area.address, area.port))
            exports[area.client] = command.export_name
        return exports

    def _await(
        self, plan: ServerPlan, program: Program, namespace: NetworkNamespace, address: tuple[str, int]
    ) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not program.alive:
                why = program.last_line() or "it said nothing"
                raise LabError(f"{plan.name}: {plan.program} ended at start: {why}")
            with namespace.entered():
                probe = socket.socket()
            with probe:
                probe.settimeout(1.0)
                if probe.connect_ex(address) == 0:
                    return
            time.sleep(POLL_S)
        raise LabError(f"{plan.name}: {plan.program} accepted no connection within {START_TIMEOUT_S:g} s")

    def __enter__(self) -> ServerPrograms:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for program in self.programs:
            program.stop()
