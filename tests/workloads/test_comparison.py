"""The comparison with vanilla: a difference counts only when it is larger than the spread."""

from __future__ import annotations

import pytest

from testbed.mm.gfp import GFP_ATOMIC
from testbed.mm.sched import Task
from testbed.workloads import comparison
from testbed.workloads.comparison import CASES, VANILLA, WORKLOADS, Row, compare, evaluate, measure
from testbed.workloads.host import Host

STEADY = [100.0, 200.0, 100.0, 200.0]


def row(case: list[float]) -> Row:
    rows = list(evaluate("work", {VANILLA: STEADY, "series": case}))
    assert (rows[0].ratio, rows[0].spread, rows[0].differs) == (1.0, 0.0, False)
    return rows[1]


def test_a_case_is_compared_with_vanilla_of_its_own_round() -> None:
    slower = row([rate * 0.9 for rate in STEADY])
    assert slower.per_cpu_s == pytest.approx(135)
    assert slower.ratio == pytest.approx(0.9)
    assert slower.spread == pytest.approx(0)
    assert slower.differs


@pytest.mark.parametrize("ratios", [(1.0, 1.0, 1.0, 1.0), (0.9, 1.1, 0.9, 1.1), (0.8, 1.0, 0.98, 0.9)])
def test_no_difference_within_the_spread(ratios: tuple[float, ...]) -> None:
    assert not row([rate * ratio for rate, ratio in zip(STEADY, ratios, strict=True)]).differs


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_difference_in_either_direction_counts(sign: int) -> None:
    assert row([rate * (1 + sign * share) for rate, share in zip(STEADY, (0.2, 0.21, 0.2, 0.21), strict=True)]).differs


def test_every_workload_has_a_row_for_every_case_and_cases_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measured(_workload: str, case: str, operations: int) -> float:
        order.append(case)
        return float(operations)

    monkeypatch.setattr(comparison, "measure", measured)
    rows = list(compare(3, 0.001))
    assert [(row.workload, row.case) for row in rows] == [(work, case) for work in WORKLOADS for case in CASES]
    first = order[:9]
    assert {tuple(sorted(first[start : start + 3])) for start in (0, 3, 6)} == {tuple(sorted(CASES))}
    assert set(first[::3]) == set(CASES)


def test_operations_are_counted_per_cpu_second() -> None:
    assert measure("sysbench faults", VANILLA, 3000) > 1000


def test_a_page_that_does_not_come_back_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaky:
        def __init__(self, host: Host) -> None:
            self._page_alloc = host.node.page_alloc

        async def run(self, operations: int) -> int:
            self._page_alloc.alloc_page_nowait(GFP_ATOMIC, Task("leaky"))
            return operations

    monkeypatch.setitem(WORKLOADS, "leaky", Leaky)
    with pytest.raises(RuntimeError, match="leaky, series: 1 pages were not given back"):
        measure("leaky", "series", 1)
