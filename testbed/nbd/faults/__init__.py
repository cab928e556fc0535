"""Storage faults: the kinds, by the names that schedules and `testbed serve --fault` use."""

from dataclasses import fields
from typing import Any

from testbed.nbd.faults.active import ActiveFault
from testbed.nbd.faults.disconnect import Disconnect
from testbed.nbd.faults.eio_flush import EioFlush
from testbed.nbd.faults.eio_read import EioRead
from testbed.nbd.faults.eio_write import EioWrite
from testbed.nbd.faults.enospc import Enospc
from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.garbled_reply import GarbledReply
from testbed.nbd.faults.hang import Hang
from testbed.nbd.faults.out_of_order import OutOfOrder
from testbed.nbd.faults.short_reply import ShortReply
from testbed.nbd.faults.slow import Slow
from testbed.nbd.faults.stall import Stall
from testbed.nbd.faults.torn_write import TornWrite
from testbed.nbd.faults.twice import Twice
from testbed.nbd.faults.wrong_handle import WrongHandle

FAULTS: dict[str, type[Fault]] = {
    "eio_read": EioRead,
    "eio_write": EioWrite,
    "eio_flush": EioFlush,
    "enospc": Enospc,
    "slow": Slow,
    "stall": Stall,
    "hang": Hang,
    "short_reply": ShortReply,
    "garbled_reply": GarbledReply,
    "wrong_handle": WrongHandle,
    "out_of_order": OutOfOrder,
    "twice": Twice,
    "disconnect": Disconnect,
    "torn_write": TornWrite,
}


def make(kind: str, arguments: dict[str, Any], seed: int) -> ActiveFault:
    """A fault ready to be set. Raises ValueError, in one clear line, for a kind or arguments that do not exist."""
    if kind not in FAULTS:
        raise ValueError(f"unknown storage fault {kind!r}: choose from {', '.join(FAULTS)}")
    known = [field.name for field in fields(FAULTS[kind])]
    for name in arguments:
        if name not in known:
            raise ValueError(f"fault {kind} has no argument {name!r}: choose from {', '.join(known)}")
    return ActiveFault(kind, FAULTS[kind](**arguments), seed)


def parse(text: str, seed: int) -> ActiveFault:
    """A fault as people write it: KIND or KIND:name=value,... Raises ValueError as `make` does."""
    kind, _, rest = text.partition(":")
    arguments: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"fault {kind}: {part!r} is not name=value")
        arguments[name] = _number(value)
    return make(kind, arguments, seed)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
