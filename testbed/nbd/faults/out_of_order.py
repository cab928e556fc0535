"""A reply goes out after the one that should have followed it, as the spec permits; alone it is not held back."""

from dataclasses import dataclass
from typing import ClassVar

from testbed.nbd.faults.fault import Fault
from testbed.nbd.faults.requests import REQUESTS


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfOrder(Fault):
    concerns: ClassVar[tuple[type, ...]] = REQUESTS
    late: ClassVar[bool] = True
