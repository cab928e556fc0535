"""Sets faults on the links of a run while its workload goes on."""

from __future__ import annotations

from typing import Any

import pytest

from testbed.experiment.coordinator import Coordinator, Host
from testbed.hosts.messages import ClearFault, Event, SetFault
from tests.integration.small_run import Silent

Faults = list[tuple[str, dict[str, Any]]]


class Saboteur(Silent):
    """An observer that sets faults on all relayed links while the workload runs, and clears them after it."""

    def __init__(self, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.faults = faults
        self.links: list[Host] = []
        add_link = Coordinator.add_link

        def noted(coordinator: Coordinator, name: str, host: Host) -> None:
            self.links.append(host)
            add_link(coordinator, name, host)

        monkeypatch.setattr(Coordinator, "add_link", noted)

    def event(self, event: Event) -> None:
        super().event(event)
        for link in self.links:
            for number, (kind, arguments) in enumerate(self.faults, start=1):
                if event.name == "workload_started":
                    link.send(SetFault(number, kind, arguments, seed=number))
                elif event.name == "workload_ended":
                    link.send(ClearFault(number))
