"""Can an export hold a swap area at all? Said in one line before anything is swapped."""

from __future__ import annotations

from testbed.hosts.plan import ClientPlan
from testbed.lab.errors import LabError
from testbed.mm.watermarks import PAGE_SIZE
from testbed.nbd.client_handshake import ExportInformation
from testbed.nbd.constants import TransmissionFlag


def check_swap_area(export: ExportInformation, plan: ClientPlan) -> None:
    """Raises LabError for an export that is too small or read-only, that does not take single pages, or that may not be
    used over the connections planned (NBD_FLAG_CAN_MULTI_CONN).
    """
    flags, minimum, maximum = export.transmission_flags, export.minimum_block_size, export.maximum_block_size
    if export.size < plan.swap.bytes:
        raise LabError(f"the server's export has {export.size} bytes, the swap area needs {plan.swap.bytes}")
    if flags & TransmissionFlag.NBD_FLAG_READ_ONLY:
        raise LabError("the server's export is read-only: nothing can be swapped to it")
    if minimum > PAGE_SIZE or 0 < maximum < PAGE_SIZE:
        raise LabError(f"the server's export takes requests of {minimum} to {maximum} bytes, a page has {PAGE_SIZE}")
    if plan.nbd_connections > 1 and not flags & TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN:
        raise LabError("the server's export may not be used over several connections: set nbd_connections=1")
