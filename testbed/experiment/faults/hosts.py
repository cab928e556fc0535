"""Which host of a plan can have which fault, and what cannot be done to it."""

from __future__ import annotations

from testbed.experiment.faults.kinds import check_arguments, layer_of
from testbed.experiment.faults.step import BadSchedule, Step
from testbed.experiment.plan import Plan
from testbed.mm.watermarks import PAGE_SIZE, compute


class Hosts:
    """Which host of a plan can have which fault."""

    def __init__(self, plan: Plan) -> None:
        self.clients = {client.name: client for client in plan.clients}
        self.servers = {server.name: server for server in plan.servers}
        self.neighbours = {neighbour.name: neighbour for neighbour in plan.neighbours}
        self.names = (*self.servers, *self.clients, *self.neighbours)

    def able(self, kind: str) -> list[str]:
        """The hosts that can have a fault of this kind."""
        return [name for name in self.names if self.obstacle(name, kind) is None]

    def check(self, step: Step) -> None:
        """Raises BadSchedule if the step's target cannot have its fault."""
        if step.target not in self.names:
            raise BadSchedule(f"there is no host {step.target!r} that could have {step.kind}")
        check_arguments(step.kind, step.arguments)
        if obstacle := self.obstacle(step.target, step.kind):
            raise BadSchedule(f"{step.target} cannot have {step.kind}: {obstacle}")
        if step.kind == "kill" and step.arguments.get("data") == "lost" and self.has_file(step.target):
            raise BadSchedule(f"{step.target} keeps its data in a file, which it cannot lose")
        if step.kind == "stop_reading" and step.arguments.get("port") not in (None, *self.ports(step.target)):
            raise BadSchedule(f"{step.target}: nobody reads from port {step.arguments['port']}")
        if step.kind == "min_free_kbytes":
            self._check_min_free_kbytes(step)
        elif step.kind == "memory_taken" and step.arguments["bytes"] >= self.clients[step.target].memory:
            raise BadSchedule(f"{step.target} does not have {step.arguments['bytes']} bytes that could be taken")

    def _check_min_free_kbytes(self, step: Step) -> None:
        client = self.clients[step.target]
        try:
            compute(client.memory // PAGE_SIZE, step.arguments["kbytes"], client.rules, client.zones, client.nodes)
        except ValueError as error:
            raise BadSchedule(f"{step.target}: {error}") from None

    def obstacle(self, name: str, kind: str) -> str | None:
        """Why a host cannot have faults of this kind; None if it can."""
        return _OBSTACLES[layer_of(kind)](self, name, kind)

    def _link(self, name: str, _: str) -> str | None:
        same_host = name in self.servers and self.servers[name].interface.host != name
        return "it is on its client's machine, and has no link of its own" if same_host else None

    def _storage(self, name: str, _: str) -> str | None:
        if name not in self.servers:
            return "it is not a server"
        return None if self.servers[name].program == "builtin" else "only our own server has storage faults"

    def _process(self, name: str, kind: str) -> str | None:
        if kind == "stop_reading":
            return self._memory(name, kind) or self._bystanders(name)
        if name in self.clients:
            return "a client can only be paused" if kind == "kill" else None
        if name in self.servers:
            return None if self.servers[name].program == "builtin" else "only our own server can be stopped like that"
        return None if self.neighbours[name].traffic else "it sends no flood that could be stopped"

    def _memory(self, name: str, _: str) -> str | None:
        return None if name in self.clients else "it is not a swap client"

    def has_file(self, name: str) -> bool:
        """Does a server keep what it serves in a file?"""
        return name in self.servers and any(area.file is not None for area in self.servers[name].areas)

    def ports(self, client: str) -> list[int]:
        """The ports of a client's bystanders that somebody reads from."""
        return [each.port for each in self.clients[client].bystanders if each.reader != "never"]

    def _bystanders(self, name: str) -> str | None:
        return None if self.ports(name) else "nobody reads from any of its bystanders"


_OBSTACLES = {"link": Hosts._link, "storage": Hosts._storage, "process": Hosts._process, "memory": Hosts._memory}
