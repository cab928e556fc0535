"""Each check goes red by itself, missing evidence is never good evidence, and outcomes follow from what was seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.experiment.deadlock import diagnose
from testbed.experiment.evidence import Canary, ClientEvidence, Observation, Stall
from testbed.experiment.verdict import Verdict, judge
from testbed.patches import PATCHES
from tests.experiment.witness import ALL_PATCHES, STALL_LIMIT, client, counters, report, run, spoiled, stall

TALLIES = [
    ("frames", "received"),
    ("frames", "delivered"),
    ("frames", "pending"),
    ("frames", "dropped", "PFMEMALLOC"),
    ("frames", "dropped", "SOCKET_RCVBUFF"),
    ("interfaces", "wire_rx_packets"),
    ("interfaces", "tp_drops"),
    ("interfaces", "inner_rx_packets"),
    ("interfaces", "inner_delivered"),
    ("sockets", "canary", "delivered"),
    ("sockets", "canary", "received"),
    ("pages_leaked",),
]


def ok(verdict: Verdict) -> dict[str, bool | None]:
    return {check.name: check.ok for check in verdict.checks}


def red(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.ok is False}


def evidence(verdict: Verdict, name: str) -> str:
    return next(check.evidence for check in verdict.checks if check.name == name)


def hung(what: Stall, **changes: Any) -> ClientEvidence:
    """A client of an unpatched host that stalled: no reserve memory ever reached a socket."""
    return client(stall=what, canary_after=None, **changes)


def test_a_run_where_everything_went_right_passes() -> None:
    verdict = judge(run())
    assert verdict.outcome == "pass"
    assert list(ok(verdict).values()) == [True] * 8


def test_the_checks_keep_their_names_and_order() -> None:
    assert list(ok(judge(run()))) == [
        "canary before",
        "drops happen",
        "swap is spared",
        "progress",
        "integrity",
        "conservation",
        "canary after",
        "the switch took effect",
    ]


@pytest.mark.parametrize(
    ("name", "spoilt"),
    [
        ("canary before", client(canary_before=Canary(20, 19))),
        ("canary before", client(canary_before=None)),
        ("drops happen", client(flood_sent=None)),
        ("drops happen", client(report=spoiled("frames", "unrelated_pfmemalloc_delivered", value=1))),
        ("drops happen", client(report=spoiled("frames", "unrelated_pfmemalloc", value=701))),
        ("swap is spared", client(report=spoiled("frames", "swap_socket_filtered", value=1))),
        ("progress", client(report=spoiled("workload", "finished_tasks", value=15))),
        ("progress", client(report=spoiled("swap", "max_gap_s", value=STALL_LIMIT + 0.1))),
        ("progress", client(report=spoiled("swap", "pages_out", value=0))),
        ("progress", client(samples=[])),
        ("integrity", client(report=spoiled("workload", "corrupt", value=1))),
        ("integrity", client(report=spoiled("swap", "corrupt", value=1))),
        ("integrity", client(report=spoiled("workload", "checked", value=65535))),
        ("integrity", client(report=spoiled("swap", "pages_in", value=0))),
        ("conservation", client(report=spoiled("frames", "received", value=30001))),
        ("conservation", client(report=spoiled("pages_leaked", value=1))),
        ("conservation", client(report=spoiled("interfaces", "wire_rx_packets", value=25001))),
        ("conservation", client(report=spoiled("interfaces", "inner_rx_packets", value=24501))),
        ("conservation", client(report=spoiled("sockets", "canary", "received", value=239))),
        ("conservation", client(report=spoiled("sockets", value={}))),
        ("canary after", client(canary_after=Canary(200, 71))),
        ("canary after", client(canary_after=Canary(128, 128))),
        ("canary after", client(canary_after=None)),
        ("the switch took effect", client(report=spoiled("witnesses", "9", "witness", value=0))),
        ("the switch took effect", client(report=spoiled("witnesses", value={}))),
    ],
)
def test_each_check_goes_red_on_what_it_is_for(name: str, spoilt: ClientEvidence) -> None:
    verdict = judge(run(spoilt))
    assert name in red(verdict)
    assert verdict.outcome == "fail"


def test_a_red_check_leaves_the_others_alone() -> None:
    assert red(judge(run(client(canary_before=Canary(20, 19))))) == {"canary before"}
    assert red(judge(run(client(report=spoiled("frames", "swap_socket_filtered", value=1))))) == {"swap is spared"}
    assert red(judge(run(client(report=spoiled("workload", "corrupt", value=1))))) == {"integrity"}
    assert red(judge(run(client(report=spoiled("pages_leaked", value=4))))) == {"conservation"}
    assert red(judge(run(client(report=spoiled("swap", "max_gap_s", value=6.0))))) == {"progress"}


@pytest.mark.parametrize(
    "path",
    [
        ("frames",),
        ("frames", "received"),
        ("frames", "delivered"),
        ("frames", "pending"),
        ("frames", "dropped"),
        ("frames", "unrelated_pfmemalloc"),
        ("frames", "unrelated_pfmemalloc_delivered"),
        ("frames", "unrelated_pfmemalloc_dropped"),
        ("frames", "swap_socket_filtered"),
        ("swap", "pages_in"),
        ("swap", "pages_out"),
        ("swap", "corrupt"),
        ("swap", "max_gap_s"),
        ("workload",),
        ("workload", "tasks"),
        ("workload", "finished_tasks"),
        ("workload", "checked"),
        ("workload", "corrupt"),
        ("pages_leaked",),
        ("interfaces", "wire_rx_packets"),
        ("interfaces", "wire_received"),
        ("interfaces", "tp_drops"),
        ("interfaces", "inner_rx_packets"),
        ("interfaces", "inner_delivered"),
        ("sockets",),
        ("sockets", "canary", "received"),
        ("witnesses",),
        ("witnesses", "9", "opportunity"),
        ("ledger",),
    ],
)
def test_what_the_report_lacks_is_a_failed_check(path: tuple[str, ...]) -> None:
    verdict = judge(run(client(report=spoiled(*path, remove=True))))
    assert verdict.outcome == "fail"
    assert any("could not be checked" in check.evidence for check in verdict.checks if check.ok is False)


@pytest.mark.parametrize("nonsense", [None, "700", 1.5, -1, True])
def test_what_is_not_a_count_is_as_good_as_missing(nonsense: object) -> None:
    verdict = judge(run(client(report=spoiled("frames", "swap_socket_filtered", value=nonsense))))
    assert red(verdict) == {"swap is spared"}


def test_a_client_without_a_report_fails_everything_that_rests_on_it() -> None:
    verdict = judge(run(client(report=None)))
    assert verdict.outcome == "fail"
    assert red(verdict) == set(ok(verdict)) - {"canary before", "canary after"}


def hide_from_frames(told: dict[str, Any]) -> None:
    told["frames"]["dropped"] = {}


def hide_from_ledger(told: dict[str, Any]) -> None:
    told["ledger"] = [row for row in told["ledger"] if row["reason"] == "DELIVERED"]


def hide_from_both(told: dict[str, Any]) -> None:
    hide_from_frames(told)
    hide_from_ledger(told)


def hide_with_the_received(told: dict[str, Any]) -> None:
    """As if the frames had never come: only the kernel's own counters still know of them."""
    hide_from_both(told)
    told["frames"] |= {"unrelated_pfmemalloc": 0, "unrelated_pfmemalloc_dropped": 0, "received": 29000}
    told["interfaces"]["wire_received"] -= 1000


def hide_as_delivered(told: dict[str, Any]) -> None:
    """As if they had been delivered: the real sockets know better."""
    told["frames"] |= {"delivered": 30000, "dropped": {}}
    told["ledger"] = [{"reason": "DELIVERED", "frames": 30000}]
    told["interfaces"]["inner_delivered"] += 1000


@pytest.mark.parametrize(
    "blind", [hide_from_frames, hide_from_ledger, hide_from_both, hide_with_the_received, hide_as_delivered]
)
def test_an_observer_who_does_not_see_the_drops_sees_no_pass(blind: Any) -> None:
    told = report()
    blind(told)
    verdict = judge(run(client(report=told)))
    assert verdict.outcome == "fail"
    assert "conservation" in red(verdict)


@given(path=st.sampled_from(TALLIES), change=st.integers(-1000, 1000).filter(bool))
def test_no_tally_can_be_off_by_anything(path: tuple[str, ...], change: int) -> None:
    here: Any = report()
    for key in path:
        here = here[key]
    verdict = judge(run(client(report=spoiled(*path, value=here + change))))
    assert "conservation" in red(verdict)


def quiet(**changes: Any) -> ClientEvidence:
    told = report()
    told["frames"] |= {"unrelated_pfmemalloc": 0, "unrelated_pfmemalloc_dropped": 0}
    return client(report=told, flood_asked=False, flood_sent=None, **changes)


def test_without_a_flood_there_is_nothing_to_drop() -> None:
    verdict = judge(run(quiet()))
    assert verdict.outcome == "pass"
    assert [name for name, value in ok(verdict).items() if value is None] == ["drops happen", "swap is spared"]


def test_a_machine_that_stopped_with_a_bug_is_no_deadlock() -> None:
    told = report() | {"panic": "kernel BUG in __sk_backlog_rcv"}
    verdict = judge(run(client(report=told)))
    assert verdict.outcome == "fail"
    evidence = next(check.evidence for check in verdict.checks if check.name == "progress")
    assert evidence == "the machine stopped: kernel BUG in __sk_backlog_rcv"


def test_a_flood_that_met_no_pressure_is_a_failure() -> None:
    verdict = judge(run(replace(quiet(), flood_asked=True, flood_sent=20000)))
    assert red(verdict) == {"drops happen"}
    assert "no pressure" in evidence(verdict, "drops happen")


def test_killed_tasks_are_named_with_what_killed_them_and_why() -> None:
    spoilt = report()
    spoilt["workload"] |= {"finished_tasks": 6, "killed_tasks": 10}
    spoilt["workload"]["killed"] = {f"touch{number}": "SIGBUS" for number in range(9)} | {"touch9": "the OOM killer"}
    spoilt["swap"]["connection_lost"] = "the NBD server closed the connection"
    verdict = judge(run(client(report=spoilt)))
    assert (verdict.outcome, "progress" in red(verdict)) == ("fail", True)
    told = evidence(verdict, "progress")
    assert "6 of 16 tasks finished" in told
    assert "touch7 and 1 more killed by SIGBUS; touch9 killed by the OOM killer" in told
    assert "connection to the swap server was lost: the NBD server closed the connection" in told


def test_lost_pages_are_named_by_their_slots() -> None:
    spoilt = report()
    spoilt["workload"]["corrupt"] = spoilt["swap"]["corrupt"] = 400
    pages = [{"slot": slot, "task": "touch1", "page": slot} for slot in range(1, 301)]
    spoilt["swap"]["lost_pages"] = {"count": 400, "pages": pages}
    told = evidence(judge(run(client(report=spoilt))), "integrity")
    assert "the server had lost 400 of them after a reconnection: slots 1, 2, 3, 4, 5, 6, 7, 8 and 392 more" in told


def test_a_client_whose_server_is_away_is_not_deadlocked() -> None:
    away = {"nbd_live_connections": 0}
    assert diagnose(stall({"nbd_live_connections": 1}), STALL_LIMIT).deadlock
    for gone in (stall(away), stall({"nbd_live_connections": 1}, away)):
        diagnosis = diagnose(gone, STALL_LIMIT)
        assert (diagnosis.deadlock, "server was away" in diagnosis.text) == (False, True)


def test_a_confirmed_stall_is_a_deadlock_with_its_signature() -> None:
    verdict = judge(run(hung(stall())))
    assert verdict.outcome == "deadlock"
    text = evidence(verdict, "progress")
    for part in ("pswpout flat at 60", "nr_writeback constant at 32", "allocstall +793", "RX refill failures +4989"):
        assert part in text


def test_the_signature_names_what_did_not_stand_still() -> None:
    text = evidence(judge(run(hung(stall(afterwards={"pswpout": 63, "nr_writeback": 31})))), "progress")
    assert "pswpout +3, nr_writeback 32 to 31" in text
    late = stall(during={"pswpout": 124, "nr_writeback": 96})
    assert "pswpout flat at 124, nr_writeback constant at 96" in evidence(judge(run(hung(late))), "progress")


def test_the_patches_that_are_off_decide_nothing() -> None:
    told = spoiled("witnesses", value={"9": {"opportunity": 0, "witness": 0, "what": "x"}})
    for patches in (ALL_PATCHES, frozenset[int]()):
        stalled = judge(run(hung(stall(), report=told), patches=patches))
        healthy = judge(run(client(report=told), patches=patches))
        assert stalled.outcome == "fail"
        assert healthy.outcome == "fail"
        assert red(healthy) == {"the switch took effect"}


@pytest.mark.parametrize("counter", ["swap_completions", "pgsteal_kswapd", "pgsteal_direct", "touches"])
def test_what_moves_once_the_flood_is_over_was_starved(counter: str) -> None:
    verdict = judge(run(hung(stall(afterwards={counter: counters()[counter] + 1}))))
    assert verdict.outcome == "fail"
    assert "starved, not deadlocked" in evidence(verdict, "progress")


@pytest.mark.parametrize("counter", ["swap_completions", "pgsteal_kswapd", "pgsteal_direct", "touches"])
def test_what_moves_under_the_flood_is_slow(counter: str) -> None:
    verdict = judge(run(hung(stall(during={counter: counters()[counter] + 1}))))
    assert verdict.outcome == "fail"
    assert "slow, not deadlocked" in evidence(verdict, "progress")


def test_a_stall_that_was_not_watched_long_enough_is_no_deadlock() -> None:
    whole = stall()
    for cut in (
        replace(whole, after=Observation(19.9, whole.after.counters)),
        replace(whole, noticed=Observation(14.9, whole.noticed.counters)),
    ):
        verdict = judge(run(hung(cut)))
        assert verdict.outcome == "fail"
        assert "not enough to call it a deadlock" in evidence(verdict, "progress")


@pytest.mark.parametrize("where", ["during", "afterwards"])
def test_where_no_task_waits_there_is_no_deadlock(where: str) -> None:
    verdict = judge(run(hung(stall(**{where: {"tasks_waiting": 0}}))))
    assert verdict.outcome == "fail"
    assert "idle, not deadlocked" in evidence(verdict, "progress")


@pytest.mark.parametrize(("free", "deadlock"), [(320, True), (321, False)])
def test_who_has_memory_to_spare_is_stuck_on_something_else(free: int, deadlock: bool) -> None:
    diagnosis = diagnose(stall(afterwards={"nr_free_pages": free}), STALL_LIMIT)
    assert diagnosis.deadlock == deadlock
    assert ("not for memory" in diagnosis.text) != deadlock


def test_free_memory_in_blocks_too_small_for_a_receive_buffer_is_none_to_spare() -> None:
    refused = {"nr_free_pages": 1783, "rx_refill_fail": counters()["rx_refill_fail"] + 9000}
    diagnosis = diagnose(stall(afterwards=refused), STALL_LIMIT)
    assert diagnosis.deadlock
    assert diagnosis.text.endswith("1783 pages free, in blocks too small for a receive buffer")


@pytest.mark.parametrize("counter", ["swap_completions", "pswpout", "tasks_waiting", "rx_refill_fail"])
def test_a_stall_without_its_counters_is_no_deadlock(counter: str) -> None:
    whole = stall()
    partial = {name: value for name, value in whole.after.counters.items() if name != counter}
    verdict = judge(run(hung(replace(whole, after=Observation(whole.after.time, partial)))))
    assert verdict.outcome == "fail"
    assert "could not be checked" in evidence(verdict, "progress")


def test_a_hang_on_a_rig_whose_accounts_are_wrong_is_no_deadlock() -> None:
    assert judge(run(hung(stall(), canary_before=Canary(20, 0)))).outcome == "fail"
    assert judge(run(hung(stall(), report=spoiled("pages_leaked", value=9)))).outcome == "fail"


def test_running_out_of_time_while_moving_is_a_failure_that_says_so() -> None:
    verdict = judge(run(out_of_time=True))
    assert verdict.outcome == "fail"
    assert "still moving" in evidence(verdict, "progress")


def test_the_samples_can_contradict_the_client() -> None:
    frozen = [Observation(tick / 10, counters(tasks_waiting=3)) for tick in range(80)]
    silent = [Observation(0.0, counters(tasks_waiting=0)), Observation(9.0, counters(tasks_waiting=0))]
    inflated = [Observation(0.0, counters()), Observation(0.1, counters(pswpout=12001))]
    for seen in (frozen, silent, inflated):
        assert red(judge(run(client(samples=seen)))) == {"progress"}


def test_a_pause_with_no_task_waiting_is_rest() -> None:
    resting = [Observation(tick / 10, counters(tasks_waiting=0)) for tick in range(80)]
    assert judge(run(client(samples=resting))).outcome == "pass"


def test_to_fill_memory_before_anything_is_swapped_is_no_pause() -> None:
    filling = [Observation(tick / 10, counters(tasks_waiting=3, pswpout=0)) for tick in range(80)]
    swapping = Observation(8.0, counters(tasks_waiting=3))
    assert judge(run(client(samples=[*filling, swapping]))).outcome == "pass"


def test_an_error_of_the_rig_is_neither_pass_nor_fail() -> None:
    verdict = judge(run(error="the server died"))
    assert verdict.outcome == "error"
    assert set(ok(verdict).values()) == {False}
    assert "the server died" in verdict.checks[0].evidence


def test_several_clients_must_all_be_well() -> None:
    well, ill = client(), client(name="other", canary_before=Canary(20, 0))
    assert judge(run(well, replace(well, name="other"))).outcome == "pass"
    verdict = judge(run(well, ill))
    assert red(verdict) == {"canary before"}
    assert "other: 0 of 20" in evidence(verdict, "canary before")


def test_one_deadlocked_client_is_a_deadlocked_run() -> None:
    assert judge(run(client(), hung(stall(), name="other"))).outcome == "deadlock"


class TestTheSwitch:
    """Check 8: what only a patch does is seen if and only if the patch is on."""

    @staticmethod
    def check(off: int, opportunity: int, witness: int) -> tuple[bool | None, str]:
        told = spoiled("witnesses", str(off), value={"opportunity": opportunity, "witness": witness, "what": "w"})
        verdict = judge(run(client(report=told), patches=ALL_PATCHES - {off}))
        name = "the switch took effect"
        return ok(verdict)[name], evidence(verdict, name)

    def test_off_and_not_seen(self) -> None:
        assert self.check(15, 5, 0) == (
            True,
            "seen at work: patch 2, 3, 4, 5, 7, 8, 9, 12, 14, 16; seen to be off: patch 15",
        )

    def test_off_but_seen(self) -> None:
        result, text = self.check(15, 5, 1)
        assert result is False
        assert "patch 15 is off, but was seen at work 1 times" in text

    def test_off_without_occasion(self) -> None:
        result, text = self.check(15, 0, 0)
        assert result is False
        assert "had no occasion" in text

    def test_off_and_nobody_watched(self) -> None:
        told = spoiled("witnesses", "15", remove=True)
        verdict = judge(run(client(report=told), patches=ALL_PATCHES - {15}))
        assert "the switch took effect" in red(verdict)

    def test_on_without_occasion_is_fine_as_long_as_one_patch_had_one(self) -> None:
        told = report()
        for number in PATCHES:
            if number != 9 and str(number) in told["witnesses"]:
                told["witnesses"][str(number)] |= {"opportunity": 0, "witness": 0}
        assert judge(run(client(report=told))).outcome == "pass"
        told["witnesses"]["9"] |= {"opportunity": 0, "witness": 0}
        assert red(judge(run(client(report=told)))) == {"the switch took effect"}

    def test_a_patch_whose_base_is_off_needs_no_occasion_but_must_not_be_seen(self) -> None:
        told = report()
        told["witnesses"]["15"] |= {"witness": 0}
        told["witnesses"]["16"] |= {"opportunity": 0, "witness": 0}
        assert judge(run(client(report=told), patches=ALL_PATCHES - {15, 16})).outcome == "pass"
        told["witnesses"]["16"] |= {"witness": 2}
        assert judge(run(client(report=told), patches=ALL_PATCHES - {15, 16})).outcome == "fail"

    def test_of_several_that_are_off_one_must_have_shown_it(self) -> None:
        told = report()
        for number in (5, 12):
            told["witnesses"][str(number)] |= {"opportunity": 0, "witness": 0}
        verdict = judge(run(client(report=told), patches=ALL_PATCHES - {5, 12}))
        assert red(verdict) == {"the switch took effect"}
        assert "patch 12 is off, but had no occasion" in evidence(verdict, "the switch took effect")
        told["witnesses"]["15"] |= {"witness": 0}
        verdict = judge(run(client(report=told), patches=ALL_PATCHES - {5, 12, 15}))
        assert verdict.outcome == "pass"
        assert "off, without an occasion to show it: patch 5, 12" in evidence(verdict, "the switch took effect")


def test_a_second_stop_without_any_flood_counts_from_when_it_was_noticed() -> None:
    whole = stall()
    late = replace(whole, flood_stopped=3.0)
    assert judge(run(hung(late))).outcome == "deadlock"
    short = replace(late, after=Observation(19.0, whole.after.counters))
    assert judge(run(hung(short))).outcome == "fail"


def test_of_very_many_clients_the_failed_ones_are_spelt_out() -> None:
    clients = [client(name=f"thin{number}") for number in range(50)]
    clients[37] = replace(clients[37], canary_before=Canary(50, 49))
    check = judge(run(*clients)).checks[0]
    assert not check.ok
    assert check.evidence.startswith("thin37: 49 of 50")
    assert check.evidence.endswith("and 30 more clients, 0 of which failed")
