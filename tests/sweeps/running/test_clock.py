"""A sweep with a time budget: what starts, what is left out, and whether the confirmation fits."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from sweeps.planning.confirmation import Confirmation
from sweeps.running.clock import Clock, Deadline
from sweeps.running.search import SweepSearch
from sweeps.trial_config import CONFIRMATION, ID, KIND, PARAMETERS
from tests.sweeps.running.test_confirming_search import SPACE, row

CONFIRM = Confirmation(finalists=2, seeds=3)


class Simulation:
    """A sweep of one trial at a time; each step takes one second, and a trial that trains nothing takes eight."""

    def __init__(
        self,
        folder: Path,
        budget: float,
        rows: Any = (),
        trials: int = 20,
        confirm: Any = CONFIRM,
        start: float = 0.0,
        steps: int = 8,
    ) -> None:
        self.time, self.rows, self.start, self.steps = 0.0, list(rows), start, steps
        self.clock = Clock(budget, 1, steps, steps, now=lambda: self.time, reused=start > 0)
        journal = folder / f"journal{budget}"
        self.search = SweepSearch(
            SPACE, "val/psnr", "max", 0, trials, steps, journal, confirm, self.rows, first_seed=5, clock=self.clock
        )

    def run(self) -> list[dict[str, Any]]:
        """The trials that started, all to their ends."""
        found: list[dict[str, Any]] = []
        while self.search.left:
            name = f"trial{len(found)}"
            config = self.search.suggest(name)
            if config == self.search.FINISHED:
                break
            found.append(config)
            result = {"val/psnr": 20.0 - abs(config[PARAMETERS]["x"] - 0.7)}
            self.time, self.start = self.time + self.start, 0.0
            for step in (2, 4, 6, 8) if self.steps else (0,):
                self.time += 2.0 if self.steps else 8.0
                self.search.on_trial_result(name, {**result, "step": step, "train/busy_seconds": 2.0})
            self.search.on_trial_complete(name, {**result, "step": self.steps})
            self.rows.append(row(config, result["val/psnr"]) | {"steps": self.steps, "wall_seconds": 8.0})
        return found


def kinds(trials: list[dict[str, Any]]) -> tuple[int, int]:
    confirmed = sum(trial[KIND] == CONFIRMATION for trial in trials)
    return len(trials) - confirmed, confirmed


def test_sweep_ends_in_time_with_its_confirmation(tmp_path: Path) -> None:
    for budget in (150.0, 200.0, 260.0):
        made = Simulation(tmp_path, budget)
        search, confirmation = kinds(made.run())
        assert confirmation == 9 and made.time <= budget
        assert budget - made.time < 60  # it does not give much away: a trial takes 8 s
        assert made.search.closed and made.search.searched == search and made.search.left == 0


def test_space_that_trains_nothing_is_confirmed_in_time(tmp_path: Path) -> None:
    """Its trials report once, at step 0."""
    first = Simulation(tmp_path, 200.0, steps=0)
    search, confirmation = kinds(first.run())
    assert confirmation == 9 and first.time <= 200.0 and search == kinds(Simulation(tmp_path, 200.0).run())[0]
    again = Simulation(tmp_path, 200.0, first.rows, steps=0)
    again.time = first.time
    assert again.run() == []  # it knows how long these trials took


def test_no_trial_starts_after_the_budget_if_none_has_reported(tmp_path: Path) -> None:
    made = Simulation(tmp_path, 40.0)
    assert made.search.suggest("first") is not None
    made.time = 41.0
    assert made.search.suggest("second") is None and made.search.closed


def test_budget_that_is_large_enough_changes_nothing(tmp_path: Path) -> None:
    made = Simulation(tmp_path, 1000.0, trials=6)
    assert kinds(made.run()) == (6, 9)
    assert not made.search.closed and made.search.searched == 6


@pytest.mark.parametrize(("budget", "expected"), [(90.0, 6), (62.0, 4), (30.0, 0)])
def test_small_budget_shrinks_the_confirmation(tmp_path: Path, budget: float, expected: int) -> None:
    """With fewer finalists, then with fewer seeds, then none; never with one seed."""
    made = Simulation(tmp_path, budget)
    found = made.run()
    assert kinds(found)[1] == expected and made.time <= budget


def test_start_of_a_process_that_is_used_again_counts_once(tmp_path: Path) -> None:
    slow, fast = Simulation(tmp_path, 195.0, start=40.0), Simulation(tmp_path, 150.0)
    assert kinds(slow.run()) == kinds(fast.run())


def test_time_without_a_confirmation_is_used_for_the_search(tmp_path: Path) -> None:
    """The smallest confirmation takes 32 s, of a budget of 40 s."""
    made = Simulation(tmp_path, 40.0)
    assert kinds(made.run()) == (2, 0) and made.time <= 40.0


def test_search_without_a_confirmation_uses_the_time(tmp_path: Path) -> None:
    made = Simulation(tmp_path, 100.0, confirm=None)
    assert kinds(made.run()) == (11, 0)


def test_more_time_adds_trials_and_their_confirmation(tmp_path: Path) -> None:
    first = Simulation(tmp_path, 150.0)
    before = first.run()
    again = Simulation(tmp_path, 300.0, first.rows)
    again.time = first.time
    after = again.run()
    assert kinds(after)[0] > 0
    ids = [trial[ID] for trial in [*before, *after]]
    assert len(set(ids)) == len(ids)


def test_nothing_starts_when_the_time_is_used_up(tmp_path: Path) -> None:
    first = Simulation(tmp_path, 150.0)
    first.run()
    again = Simulation(tmp_path, 151.0, first.rows)
    again.time = 151.0
    assert again.run() == [] and again.search.left == 0


def test_time_that_trials_take_follows_the_nodes_of_a_cluster() -> None:
    room = 4
    clock = Clock(100.0, lambda: room, 8, 8, now=lambda: 0.0)
    clock.knows("a", 10.0, 8)
    assert clock.fits(["a"] * 16)
    room = 1
    assert not clock.fits(["a"] * 16)


def test_deadline_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt), Deadline(0.05, time.monotonic()):
        time.sleep(30)
    with Deadline(float("inf"), time.monotonic()), Deadline(60.0, time.monotonic()):
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_failed_trial_stays_out_once_a_search_that_the_budget_closed_is_confirmed(tmp_path: Path) -> None:
    """Fewer trials were searched than asked for; leaders were chosen among them all the same."""
    first = Simulation(tmp_path, 150.0)
    found = first.run()
    count, _ = kinds(found)
    assert 2 < count < 20
    worst = min(range(2, count), key=lambda k: first.rows[k]["val/psnr"])
    first.rows[worst] |= {"status": "failed", "val/psnr": None}
    rows = [*first.rows[: count + 1], first.rows[count + 1] | {"status": "interrupted", "val/psnr": None}]
    again = Simulation(tmp_path, 150.0, rows)
    again.time = 8.0 * (count + 1)
    assert [trial[ID] for trial in again.run()] == [f"c{k:03d}" for k in range(1, 9)]


@pytest.mark.parametrize(("ended", "missing"), [(1, True), (3, True), (5, True), (6, False), (9, False)])
def test_confirmation_without_time_is_whole_if_each_configuration_has_two_seeds(
    tmp_path: Path, ended: int, missing: bool
) -> None:
    """Else trials are left, and nothing may be called better."""
    first = Simulation(tmp_path, 150.0)
    count, _ = kinds(first.run())
    again = Simulation(tmp_path, 150.0, first.rows[: count + ended])
    again.time = 150.0
    assert (again.search.left > 0) is missing
