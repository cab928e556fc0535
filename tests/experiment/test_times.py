"""User, system and elapsed time on their way from a client's report to the result and to people."""

from __future__ import annotations

import pytest

from testbed.experiment.report import numbers
from testbed.experiment.result import Result, Times, client_result, decode, encode, total_times

ONE, OTHER = Times(1.0, 10.0, 30.0), Times(2.0, 5.0, 40.0)


@pytest.mark.parametrize(
    ("each", "together"),
    [
        ([ONE], ONE),
        ([ONE, OTHER], Times(3.0, 15.0, 40.0)),
        ([ONE, Times()], Times()),
        ([ONE, Times(elapsed_s=50.0)], Times(elapsed_s=50.0)),
        ([], Times()),
    ],
)
def test_cpu_times_add_up_and_what_one_client_does_not_know_nobody_does(each: list[Times], together: Times) -> None:
    clients = [
        client_result("client", {"times": {"user_s": t.user_s, "system_s": t.system_s, "elapsed_s": t.elapsed_s}})
        for t in each
    ]
    assert total_times(clients) == together


def test_times_are_in_result_json_and_results_of_before_can_be_read() -> None:
    assert decode(encode(Result(outcome="pass", times=ONE))).times == ONE
    assert decode(b'{"outcome": "pass"}').times == Times()


@pytest.mark.parametrize(
    ("times", "shown"), [(ONE, "1.00 s / 10.00 s / 30.00 s"), (Times(elapsed_s=7.5), "- / - / 7.50 s"), (Times(), None)]
)
def test_times_for_people(times: Times, shown: str | None) -> None:
    assert dict(numbers(Result(outcome="pass", times=times))).get("user / system / elapsed") == shown
