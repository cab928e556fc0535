"""The OOM killer: whom it chooses, and that it waits for its victim."""

from __future__ import annotations

from testbed.mm.sched import Task
from tests.mm.machine import Machine


def sized(name: str, rss: int) -> Task:
    task = Task(name)
    task.rss = rss
    return task


def test_the_largest_task_dies_and_nobody_else_until_it_has_gone() -> None:
    killer = Machine().node.oom_killer
    small, large, medium = sized("small", 1), sized("large", 100), sized("medium", 50)
    killer.tasks |= {small, large, medium}
    killer.out_of_memory(small)
    killer.out_of_memory(small)
    assert (large.memdie, large.fatal_signal, medium.memdie, small.memdie) == (True, True, False, False)
    assert killer.vmstat.oom_kill == 1
    killer.tasks.discard(large)
    killer.out_of_memory(small)
    assert (medium.memdie, killer.vmstat.oom_kill) == (True, 2)


def test_what_is_in_swap_counts_as_well() -> None:
    killer = Machine().node.oom_killer
    resident, swapped = sized("resident", 100), sized("swapped", 1)
    swapped.swapents = 100
    killer.tasks |= {resident, swapped}
    killer.out_of_memory(resident)
    assert (resident.memdie, swapped.memdie) == (False, True)


def test_nobody_to_kill() -> None:
    killer = Machine().node.oom_killer
    killer.out_of_memory(Task("caller"))
    assert killer.vmstat.oom_kill == 0
