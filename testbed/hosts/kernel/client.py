"""A real kernel in a swap client's place: a process that starts User Mode Linux, and speaks for it.

It runs in a namespace whose only interface is the end of the client's link, where the emulated NIC would be. The guest
may hang; this process does not, so that samples go on, and the last that the guest said of itself stays known.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiprocess.connection import Connection

from testbed.hosts.kernel import proc_text, steps
from testbed.hosts.kernel.faults import GuestFaults
from testbed.hosts.kernel.guest import SAMPLER, SAMPLER_OF_MEMORY, Guest
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.kernel.mconsole import ask
from testbed.hosts.kernel.packet_socket import PacketSocket
from testbed.hosts.kernel.pulse import Pulse
from testbed.hosts.kernel.records import Record
from testbed.hosts.kernel.report import Account, Wire, Work, kernel_report
from testbed.hosts.kernel.uml import Machine, root_directory
from testbed.hosts.messages import ClearFault, Event, Finished, Ready, Sample, SetFault, Shutdown, StartWorkload
from testbed.hosts.plan import ClientPlan
from testbed.lab.errors import LabError
from testbed.lab.link import interface_statistics
from testbed.lab.namespace import NetworkNamespace
from testbed.mm.node import kmalloc_size
from testbed.mm.watermarks import PAGE_SIZE
from testbed.net.skbuff import rx_sizes

WIRE = "wire0"
SAMPLE_INTERVAL = 0.1
BOOT_S, STEP_S, ENDING_S, FRESH_S, MCONSOLE_S, POWER_OFF_S = 20.0, 10.0, 5.0, 1.0, 2.0, 2.0
SILENT_S = 1.0
"""After so long without a word the guest's tasks are taken to be waiting, as its samplers are."""
KILLED_BY: dict[int, str] = {signal.SIGKILL: "the OOM killer", signal.SIGBUS: "SIGBUS"}
"""Nobody else sends them to a task."""
MEMORY = "meminfo"
"""The source that tells how much memory is free."""
PACKET_BUFFER = 1 << 20
"""Room in the packet socket, bytes: what a machine that is late to look may have waiting."""


@dataclass(frozen=True, slots=True)
class KernelClientSpec:
    """What the process needs: its part of the plan, the kernel and its boot parameters, the guest's program, the seed,
    the addresses and MAC addresses to know from the start, a directory for the guest, and where its console goes."""

    plan: ClientPlan
    image: KernelImage
    parameters: tuple[str, ...]
    program: Path
    seed: int
    neighbours: tuple[tuple[str, str], ...]
    directory: Path
    console: Path


def kernel_client_main(channel: Connection, spec: KernelClientSpec) -> None:
    """The whole life of a kernel host's process; the caller has put it into the namespace of the client's link."""
    with KernelClient(channel, spec).running() as client:
        client.run()


class KernelClient:
    """The guest, and what is known of it."""

    def __init__(self, channel: Connection, spec: KernelClientSpec) -> None:
        self.channel = channel
        self.spec = spec
        self.plan = spec.plan
        self.pulse = Pulse()
        self.work = Work(None, None, {}, {})
        self.lowest_free: int | None = None
        self.reconnects = 0
        self.killed: dict[str, str] = {}
        self.swapping = False
        self.stopping = False
        self.panic: str | None = None
        self._namespace = NetworkNamespace.current()

    @contextlib.contextmanager
    def running(self) -> Iterator[KernelClient]:
        """The guest, up and ready to swap. Raises LabError."""
        plan, spec = self.plan, self.spec
        modules = _modules(spec.image)
        root_directory(spec.directory, spec.program, modules, read=plan.page_cache)
        mac, mtu = plan.interface.mac, plan.interface.mtu
        machine = Machine(spec.image.path, spec.parameters, plan.memory, WIRE, mac, mtu, plan.ring)
        self.guest = Guest(machine, spec.directory, spec.console)
        try:
            self.guest.booted(BOOT_S)
            self._wire_before = self._wire_packets()
            for line in steps.setup(plan, spec.neighbours, modules):
                self.guest.do(line, STEP_S)
                if line.startswith("up "):
                    self.packets = PacketSocket(self.guest.uml.pid, PACKET_BUFFER)
            self.faults = GuestFaults(plan, self.guest, self._event)
            yield self
        finally:
            self.guest.close()

    def run(self) -> None:
        """Say that it is ready, obey, and give account."""
        self.channel.send(Ready(self.plan.name, {"kernel": self.spec.image.identity(self.spec.parameters)}))
        while not self.stopping:
            if self.panic is None and (not self.guest.uml.alive or self.guest.panic()):
                self._panicked()
            self._say_sample()
            self._wait_until(time.monotonic() + SAMPLE_INTERVAL)
        self.channel.send(Finished(self.plan.name, self._conclude()))

    def _wait_until(self, deadline: float) -> None:
        while not self.stopping and (left := deadline - time.monotonic()) > 0:
            for record in self.guest.pump(left, self.channel):
                self._happened(record)
            while not self.stopping and self.channel.poll():
                self._obey()

    def _obey(self) -> None:
        try:
            command = self.channel.recv()
        except EOFError:
            command = Shutdown()
        if isinstance(command, StartWorkload):
            self.work = Work(time.monotonic(), None, self._cpu_seconds(), {})
            self.guest.tell(steps.workload(self.plan, self.spec.seed))
        elif isinstance(command, SetFault):
            self.faults.set(command)
        elif isinstance(command, ClearFault):
            self.faults.clear(command.number)
        elif isinstance(command, Shutdown):
            self.stopping = True

    def _happened(self, record: Record) -> None:
        numbers = [int(word) for word in record.text.split()]
        match record.name:
            case "workload_ended":
                self.work = Work(self.work.started, time.monotonic(), self.work.cpu_before, self._cpu_seconds())
                self._event("workload_ended", {"finished_tasks": numbers[0]})
            case "task_killed":
                task, why = f"touch{numbers[0]}", KILLED_BY.get(numbers[1], f"signal {numbers[1]}")
                self.killed[task] = why
                self._event("task_killed", {"task": task, "why": why})
            case "corrupt_page":
                self._event("corrupt_page", {"task": f"touch{numbers[0]}", "page": numbers[1]})
            case "nbd_connection_lost":
                self._event("nbd_connection_lost", {"connection": numbers[0]})
            case "nbd_reconnected":
                self.reconnects += 1
                attempts, milliseconds = numbers
                fields = {"connection": 0, "seconds": milliseconds / 1000, "attempts": attempts}
                self._event("nbd_reconnected", fields)

    def _panicked(self) -> None:
        """The guest has given up: no task runs again. One that panics while it has no memory may not even end."""
        self.panic = self.guest.panic() or f"User Mode Linux ended: {self.guest.last_line()}"
        self.guest.uml.kill()
        self._event("panic", {"message": self.panic})
        if self._at_work:
            self.work = Work(self.work.started, time.monotonic(), self.work.cpu_before, self._cpu_seconds())
            self._event("workload_ended", {"finished_tasks": self.guest.counters.progress.get("finished", 0)})

    def _cpu_seconds(self) -> dict[str, float]:
        return proc_text.cpu_seconds(self.guest.counters.text("stat"))

    def _event(self, name: str, fields: dict[str, Any]) -> None:
        self.channel.send(Event(self.plan.name, time.monotonic(), name, fields))

    def _say_sample(self) -> None:
        now = time.monotonic()
        counters = self._counters()
        silent_s = self.guest.silent_s(SAMPLER, now)
        if self._at_work and silent_s > SILENT_S:
            tasks = self.plan.workload.processes
            counters["tasks_waiting"] = tasks - counters["finished_tasks"] - counters["killed_tasks"]
        counters["silent_ms"] = round(1000 * silent_s)
        counters["vmstat_silent_ms"] = round(1000 * self.guest.silent_s(SAMPLER_OF_MEMORY, now))
        self.pulse.beat(now, counters, self.guest.uml.cpu_seconds())
        if MEMORY in self.guest.heard:
            free = counters["nr_free_pages"]
            self.lowest_free = free if self.lowest_free is None else min(free, self.lowest_free)
        if not self.swapping and counters["pswpout"]:
            self.swapping = True
            self._event("swapping", {})
        self.channel.send(Sample(self.plan.name, now, counters))

    def _counters(self) -> dict[str, int]:
        """The guest's counters and ours. Debian's driver does not count the frames that it has no memory for; they are
        those that came and did not go up, the few that it has not looked at yet included."""
        self.packets.read_statistics()
        counters = self.guest.counters.snapshot() | {"tp_drops": self.packets.drops}
        if not self.spec.image.built:
            missed = self.packets.packets - self.packets.drops - counters["rx_packets"]
            counters["rx_missed"] = counters["rx_refill_fail"] = max(0, missed)
        return counters

    @property
    def _at_work(self) -> bool:
        return self.work.started is not None and self.work.ended is None

    def _conclude(self) -> dict[str, Any]:
        self.faults.close()
        hang = self._look_at_hang() if self._at_work else None
        disorder = None if hang else self._end_in_order()
        wire = self._last_frames()
        return kernel_report(
            Account(
                plan=self.plan,
                image=self.spec.image,
                parameters=self.spec.parameters,
                counters=self.guest.counters,
                pulse=self.pulse,
                wire=wire,
                work=self.work,
                lowest_free=self.lowest_free or 0,
                panic=self.panic,
                hang=hang,
                disorder=disorder,
                reconnects=self.reconnects,
                killed=self.killed,
            )
        )

    def _look_at_hang(self) -> dict[str, Any]:
        """What can be seen of a guest whose workload did not end: the memory that its console still tells of."""
        now = time.monotonic()
        memory = ask(self.guest.uml.management, "sysrq m", MCONSOLE_S)
        buffer_size = kmalloc_size(rx_sizes("vector", self.plan.interface.mtu)[0])
        return {
            "activity": self.pulse.activity(),
            "cpu_share": round(self.pulse.cpu_share(), 3),
            "still_s": round(now - (self.pulse.moved or now), 3),
            "silent_s": round(self.guest.silent_s(SAMPLER, now), 3),
            "vmstat_silent_s": round(self.guest.silent_s(SAMPLER_OF_MEMORY, now), 3),
            "memory": memory,
            "largest_free_block": proc_text.largest_free_block(memory or ""),
            "receive_buffer_pages": max(1, buffer_size // PAGE_SIZE),
        }

    def _end_in_order(self) -> str | None:
        """Have the guest put everything back; why it did not, if so."""
        try:
            for line in steps.ending():
                self.guest.do(line, ENDING_S)
        except LabError as error:
            return str(error)
        return None

    def _last_frames(self) -> Wire:
        """Let no more frames in, hear what the guest made of the last, end it, and count what is left over."""
        self.packets.shut()
        veth = self._wire_packets() - self._wire_before
        self.guest.refresh(FRESH_S)
        with contextlib.suppress(LabError):
            self.guest.tell("end")
        if not self._at_work:
            self.guest.uml.wait(POWER_OFF_S)
        self.guest.close()
        self.packets.read_statistics()
        pending = self.packets.drain()
        self.packets.close()
        return Wire(veth, self.packets.packets, self.packets.drops, pending)

    def _wire_packets(self) -> int:
        return interface_statistics(self._namespace, WIRE)["rx_packets"]


def _modules(image: KernelImage) -> list[Path]:
    """The modules that a packaged kernel needs."""
    return [] if image.modules is None else [image.modules / "kernel" / "drivers" / "block" / "nbd.ko"]
