"""Which exports can hold a swap area: everything else is refused in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.experiment.plan import resolve
from testbed.hosts.swap_area import check_swap_area
from testbed.lab.errors import LabError
from testbed.nbd.client_handshake import ExportInformation
from testbed.nbd.constants import TransmissionFlag
from tests.experiment.small import build

PLAN = resolve(build()).clients[0]
FLAGS = int(TransmissionFlag.NBD_FLAG_HAS_FLAGS)
GOOD = ExportInformation(PLAN.swap.bytes, FLAGS, minimum_block_size=512, maximum_block_size=1 << 20)
MULTI_CONN = FLAGS | TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN


@pytest.mark.parametrize(
    ("export", "connections", "told"),
    [
        (GOOD, 1, None),
        (ExportInformation(PLAN.swap.bytes, FLAGS), 1, None),
        (replace(GOOD, minimum_block_size=4096, maximum_block_size=4096), 1, None),
        (replace(GOOD, transmission_flags=MULTI_CONN), 4, None),
        (replace(GOOD, size=GOOD.size - 1), 1, "the swap area needs"),
        (replace(GOOD, transmission_flags=FLAGS | TransmissionFlag.NBD_FLAG_READ_ONLY), 1, "read-only"),
        (replace(GOOD, minimum_block_size=8192), 1, "a page has 4096"),
        (replace(GOOD, maximum_block_size=2048), 1, "a page has 4096"),
        (GOOD, 2, "set nbd_connections=1"),
    ],
)
def test_an_export_for_swap(export: ExportInformation, connections: int, told: str | None) -> None:
    plan = replace(PLAN, nbd_connections=connections)
    if told is None:
        check_swap_area(export, plan)
        return
    with pytest.raises(LabError, match=told) as caught:
        check_swap_area(export, plan)
    assert "\n" not in str(caught.value)
