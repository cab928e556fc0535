"""A kernel host's report: what the verdict reads, from what a guest's kernel counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testbed.experiment.checks import CHECKS
from testbed.experiment.evidence import ClientEvidence, RunEvidence
from testbed.experiment.kernel_checks import KERNEL_CHECKS, kernel_findings
from testbed.experiment.result import client_result
from testbed.hosts.kernel.counters import GuestCounters
from testbed.hosts.kernel.image import KernelImage
from testbed.hosts.kernel.pulse import Pulse
from testbed.hosts.kernel.report import Account, Wire, Work, kernel_report
from testbed.patches import PATCHES
from tests.hosts.kernel.proc_samples import TEXTS
from tests.hosts.kernel.test_steps import client_plan

BUILT = KernelImage(Path("/k"), "6.1.192-testbed", "abc", "slub", ("a change",), None, built=True)
PACKAGED = replace(BUILT, version="6.1.176", built=False, changes=())
ACTING = frozenset({2, 8, 9, 15})
WIRE = Wire(veth=524543, socket=524543, lost=5, pending=5)


def account(image: KernelImage = BUILT, wire: Wire = WIRE, texts: Mapping[str, str] | None = None) -> Account:
    counters = GuestCounters()
    for source, text in {**TEXTS, **(texts or {})}.items():
        counters.take(source, text)
    plan = client_plan()
    work = Work(10.0, 44.0, {"user": 0.1, "system": 1.0}, {"user": 0.2, "system": 30.9})
    return Account(plan, image, ("testbed.x=0",), counters, Pulse(), wire, work, 91, None, None, None, 0, {})


def test_the_result_says_what_killed_which_task_and_how_often_nbd_was_connected_again() -> None:
    killed = {"touch3": "the OOM killer", "touch5": "SIGBUS"}
    result = client_result("client", kernel_report(replace(account(), killed=killed, reconnects=2)))
    assert (result.swap.nbd_reconnects, result.workload.killed) == (2, killed)


def evidence(report: dict[str, Any], **fields: Any) -> ClientEvidence:
    return ClientEvidence("client", 128, ACTING, report, flood_asked=True, flood_sent=1000, host="kernel", **fields)


def check(name: str, report: dict[str, Any], off: set[int] | None = None) -> tuple[bool | None, str]:
    run = RunEvidence([], frozenset(PATCHES) - (off or set()), 10.0, 100.0)
    return KERNEL_CHECKS[name](evidence(report), run)


def test_the_report_fits_the_result() -> None:
    report = kernel_report(account())
    result = client_result("client", report)
    assert result.kernel["version"] == "6.1.192-testbed"
    assert result.kernel["boot_parameters"] == ["testbed.x=0"]
    assert result.memory.min == 362
    assert result.memory.reserve_min_free == 91
    assert (result.swap.pages_in, result.swap.pages_out) == (65478, 92867)
    assert result.workload.checked == 65536
    assert result.times.elapsed_s == 34.0
    assert result.times.user_s == pytest.approx((65536 * 1000 + 65536 * 2000) / 1e9)
    assert (result.times.user_s or 0) + (result.times.system_s or 0) == pytest.approx(30.0)


def test_every_frame_has_one_end() -> None:
    frames = kernel_report(account())["frames"]
    assert frames["received"] == frames["delivered"] + sum(frames["dropped"].values()) + frames["pending"]
    assert frames["dropped"]["PFMEMALLOC"] == 668
    assert frames["dropped"]["RX_MISSED"] == 7


def test_filter_drops_that_udp_does_not_know_of_hit_the_swap_connection() -> None:
    assert kernel_report(account())["frames"]["swap_socket_filtered"] == 0
    more = TEXTS["netstat"].replace("668", "670")
    frames = kernel_report(account(texts={"netstat": more}))["frames"]
    assert (frames["swap_socket_filtered"], frames["unrelated_pfmemalloc_dropped"]) == (2, 668)
    assert CHECKS["swap is spared"](evidence({"frames": frames, "swap": {"pages_out": 1}}), None)[0] is False  # type: ignore[arg-type]


class TestDropsHappen:
    def test_they_did(self) -> None:
        assert check("drops happen", kernel_report(account()))[0] is True

    @pytest.mark.parametrize(("image", "word"), [(BUILT, "no pressure"), (PACKAGED, "does not take part")])
    def test_none_is_no_pressure_or_a_driver_that_takes_no_part(self, image: KernelImage, word: str) -> None:
        none = TEXTS["netstat"].replace("668", "0")
        ok, text = check(
            "drops happen", kernel_report(account(image, texts={"netstat": none, "snmp": _errors(275780)}))
        )
        assert ok is False
        assert word in text

    def test_udp_losses_that_the_filter_did_not_count_are_found(self) -> None:
        ok, text = check("drops happen", kernel_report(account(texts={"snmp": _errors(276449)})))
        assert ok is False
        assert "669" in text


class TestConservation:
    def test_three_counts_agree(self) -> None:
        assert check("conservation", kernel_report(account()))[0] is True

    @pytest.mark.parametrize("field", ["veth", "socket", "lost", "pending"])
    def test_one_frame_too_many_or_too_few_anywhere_is_found(self, field: str) -> None:
        for step in (1, -1):
            wire = replace(WIRE, **{field: getattr(WIRE, field) + step})
            assert check("conservation", kernel_report(account(wire=wire)))[0] is False

    @pytest.mark.parametrize("source", ["dev", "rx_missed_errors"])
    def test_a_driver_that_forgets_a_frame_is_found(self, source: str) -> None:
        fewer = TEXTS[source].replace("524526", "524525").replace("7\n", "6\n", 1)
        assert check("conservation", kernel_report(account(texts={source: fewer})))[0] is False

    def test_debians_driver_may_lose_frames_unseen_only_while_memory_is_short(self) -> None:
        report = kernel_report(account(PACKAGED, texts={"rx_missed_errors": "0\n"}))
        assert check("conservation", report)[0] is True
        report["memory"]["reserve_min_free"] = 363
        assert check("conservation", report)[0] is False

    def test_a_datagram_that_no_reader_got_is_found(self) -> None:
        progress = TEXTS["progress"].replace("received1 50", "received1 49")
        ok, text = check("conservation", kernel_report(account(texts={"progress": progress})))
        assert ok is False
        assert "291" in text

    def test_an_end_in_disorder_is_found(self) -> None:
        report = kernel_report(replace(account(), disorder="swapoff: no memory"))
        ok, text = check("conservation", report)
        assert ok is False
        assert "swapoff" in text


class TestSwitches:
    def test_a_switch_that_is_off_is_seen_to_be(self) -> None:
        ok, text = check("the switch took effect", kernel_report(account()), off={8, 15, 16})
        assert ok is False, "pgscan_direct_throttle rose although patch 15 is off"
        assert "patch 15" in text
        quiet = TEXTS["vmstat"].replace("throttle 19", "throttle 0")
        assert (
            check("the switch took effect", kernel_report(account(texts={"vmstat": quiet})), off={8, 15, 16})[0] is True
        )

    def test_a_switch_that_is_on_although_its_patch_is_off_is_found(self) -> None:
        ok, text = check("the switch took effect", kernel_report(account()), off={8, 9, 15, 16})
        assert ok is False
        assert "patch 9" in text

    def test_another_kernel_than_the_one_meant_is_found(self) -> None:
        report = kernel_report(account())
        report["kernel"]["release"] = "5.10"
        from testbed.experiment.evidence import Missing

        with pytest.raises(Missing, match=r"5\.10"):
            check("the switch took effect", report)

    def test_a_packaged_kernel_is_what_it_is(self) -> None:
        report = kernel_report(account(PACKAGED, texts={"version": "6.1.176\n", "testbed": ""}))
        assert check("the switch took effect", report)[0] is True
        assert check("the switch took effect", report, off={8})[0] is False


def test_a_packaged_kernel_under_flood_is_a_finding() -> None:
    for image, count in ((PACKAGED, 1), (BUILT, 0)):
        run = RunEvidence([evidence(kernel_report(account(image)))], frozenset(), 10.0, 100.0)
        assert len(kernel_findings(run)) == count


def _errors(count: int) -> str:
    return TEXTS["snmp"].replace("276448", str(count))
