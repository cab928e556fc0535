"""A real kernel's counters under the names that the emulated client gives them."""

from __future__ import annotations

from testbed.hosts.kernel import proc_text
from testbed.hosts.kernel.uml import INTERFACE

_UDP = ("InDatagrams", "InErrors", "RcvbufErrors", "MemErrors", "NoPorts", "InCsumErrors")
_TCP_EXTENDED = ("PFMemallocDrop", "TCPRcvQDrop", "TCPBacklogDrop", "TCPMemoryPressures", "TCPRetransFail")
_BY_ZONE = ("allocstall", "pgalloc")
CANARY = 0
"""The canary's socket is the first that a guest opens."""


class GuestCounters:
    """What the guest has said of itself, the newest of each source."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def take(self, source: str, text: str) -> None:
        """Keep the newest text of a source."""
        self._texts[source] = text

    def text(self, source: str) -> str:
        """The newest text of a source, empty if there was none."""
        return self._texts.get(source, "")

    @property
    def progress(self) -> dict[str, int]:
        """What the guest's tasks and readers say."""
        return proc_text.pairs(self.text("progress"))

    def received(self, number: int) -> int:
        """Datagrams read from the socket that was opened as the `number`-th."""
        return self.progress.get(f"received{number}", 0)

    def snapshot(self) -> dict[str, int]:
        """All counters and gauges; 0 for what a kernel does not count."""
        return {**self._vmstat(), **self._memory(), **self._network(), **self._workload()}

    def _vmstat(self) -> dict[str, int]:
        counters = proc_text.pairs(self.text("vmstat"))
        for name in _BY_ZONE:
            counters[name] = sum(value for each, value in counters.items() if each.startswith(f"{name}_"))
        for name in ("pswpin", "pswpout", "pgsteal_kswapd", "pgsteal_direct", "pgscan_direct_throttle"):
            counters.setdefault(name, 0)
        return counters

    def _memory(self) -> dict[str, int]:
        memory = proc_text.meminfo(self.text("meminfo"))
        return {
            "nr_free_pages": memory.get("MemFree", 0),
            "nr_writeback": memory.get("Writeback", 0),
            "swap_used": memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
            "swap_completions": proc_text.block_pages(self.text("nbd0")),
        }

    def _network(self) -> dict[str, int]:
        snmp, netstat = proc_text.tables(self.text("snmp")), proc_text.tables(self.text("netstat"))
        device = proc_text.net_dev(self.text("dev")).get(INTERFACE, {})
        udp, extended = snmp.get("Udp", {}), netstat.get("TcpExt", {})
        missed = self._number("rx_missed_errors")
        return {
            **{name: udp.get(name, 0) for name in _UDP},
            **{name: extended.get(name, 0) for name in _TCP_EXTENDED},
            "RetransSegs": snmp.get("Tcp", {}).get("RetransSegs", 0),
            "rx_packets": device.get("rx_packets", 0),
            "tx_packets": device.get("tx_packets", 0),
            "rx_missed": missed,
            "rx_refill_fail": missed,
            "rx_dropped": self._number("rx_dropped"),
            "softnet_dropped": proc_text.softnet_stat(self.text("softnet_stat"))["dropped"],
        }

    def _workload(self) -> dict[str, int]:
        progress = self.progress
        return {
            "touches": progress.get("touches", 0),
            "finished_tasks": progress.get("finished", 0),
            "killed_tasks": progress.get("killed", 0),
            "corrupt": progress.get("corrupt", 0),
            "tasks_waiting": progress.get("touching", 0),
            "canary_received": self.received(CANARY),
        }

    def _number(self, source: str) -> int:
        text = self.text(source).strip()
        return int(text) if text.isdigit() else 0
