"""A bridge on the host (net/bridge/br_input.c, br_forward.c) of its NIC and its virtual machines' tap interfaces.

IP is on the list of protocols that may use the reserve, so that forwarding goes on in a shortage, whoever it is for. A
frame for a virtual machine goes out by that one's tap in the skb that it came in; one for everybody goes up the host's
own stack, and as a clone to each tap.
"""

from __future__ import annotations

from collections.abc import Sequence

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.net.dev import Kind
from testbed.net.drop_reason import DropReason
from testbed.net.skbuff import SkbMemory, SkBuff
from testbed.net.tun import Tun


class Bridge:
    """Joins a NIC with `tuns`.

    Args:
        softirq: who forwards; it has PF_MEMALLOC while an skb in reserve memory is received (patch 12).
    """

    def __init__(self, skb_memory: SkbMemory, tuns: Sequence[Tun], softirq: Task) -> None:
        self._skb_memory = skb_memory
        self._tuns = tuns
        self._softirq = softirq
        self.clone_failed = 0

    def br_handle_frame(self, skb: SkBuff, kind: Kind) -> DropReason | None:
        """The NIC's `rx_handler`: where an skb ended, None for one that goes up the stack (RX_HANDLER_PASS)."""
        if isinstance(kind.receiver, Tun):
            return kind.receiver.tun_net_xmit(skb)
        if kind.broadcast:
            self._br_flood(skb)
        return None

    def _br_flood(self, skb: SkBuff) -> None:
        """Send a clone out by each; without memory for it that one does without."""
        for tun in self._tuns:
            clone = self._skb_memory.skb_clone(skb, GFP_ATOMIC, self._softirq)
            if clone is None:
                self.clone_failed += 1
            else:
                tun.tun_net_xmit(clone)
