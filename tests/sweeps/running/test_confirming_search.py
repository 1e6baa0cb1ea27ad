"""The search proposes its trials, waits for their ends, and then proposes those of the confirmation."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Float, Point, SearchSpace
from sweeps.planning.confirmation import Confirmation
from sweeps.running.search import SweepSearch
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEED, TRIAL

SPACE = SearchSpace(
    name="x",
    question="Which x?",
    method="sinsr",
    parameters={"x": Float(0.0, 1.0)},
    points=(Point("low", {"x": 0.1}), Point("high", {"x": 0.9})),
    objective="val/psnr",
)
CONFIRM = Confirmation(finalists=2, seeds=2)


def searching(journal: Path, confirmation: Confirmation | None = CONFIRM, trials: int = 4) -> SweepSearch:
    return SweepSearch(SPACE, "val/psnr", "max", 0, trials, 8, journal, confirmation)


def end(search: SweepSearch, name: str, value: float, step: int = 8, error: bool = False) -> None:
    result = None if error else {"val/psnr": value, "step": step}
    if result:
        search.on_trial_result(name, result)
    search.on_trial_complete(name, result, error=error)


def drain(search: SweepSearch) -> list[dict[str, Any]]:
    """The trials of the confirmation, each ended at once."""
    found: list[dict[str, Any]] = []
    while (config := search.suggest(f"again {len(found)}")) != Searcher.FINISHED:
        assert config is not None
        end(search, f"again {len(found)}", 99.0)
        found.append(config)
    return found


def test_best_configurations_and_the_baseline_take_turns_with_fresh_seeds(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal")
    tried = [search.suggest(name) for name in "abcd"]
    assert [config[KIND] for config in tried] == [TRIAL] * 4
    for name, value in zip("abc", (20.0, 22.0, 21.0), strict=True):
        end(search, name, value)
    assert search.suggest("too early") is None  # d is running and may be a leader
    end(search, "d", 30.0, step=2)  # stopped early: not compared
    confirmed = drain(search)
    assert [config[ID] for config in confirmed] == [f"c{k:03d}" for k in range(6)]
    expected = [("low", tried[0]), ("high", tried[1]), ("", tried[2])] * 2
    for config, (label, of) in zip(confirmed, expected, strict=True):
        assert (config[LABEL], config[PARAMETERS], config[KIND], config[GIVEN]) == (
            label,
            of[PARAMETERS],
            CONFIRMATION,
            True,
        )
    seeds = [config[SEED] for config in confirmed]
    assert len(set(seeds)) == 6 and not set(seeds) & {config[SEED] for config in tried}
    study: Any = search._ot_study
    assert len(study.trials) == 4  # Optuna does not learn from the confirmation
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 3


def test_nothing_is_confirmed_if_only_the_baseline_finished(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal")
    for name, failed in zip("abcd", (False, True, True, True), strict=True):
        search.suggest(name)
        end(search, name, 20.0, error=failed)
    assert search.suggest("e") == Searcher.FINISHED


def test_baseline_that_failed_in_the_search_is_tried_again(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", trials=2)
    for name, failed in (("a", True), ("b", False)):
        search.suggest(name)
        end(search, name, 20.0, error=failed)
    assert [config[LABEL] for config in drain(search)] == ["low", "high"] * 2


def test_driver_that_is_killed_in_the_confirmation_goes_on(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal")
    for name in "abcd":
        search.suggest(name)
        end(search, name, 20.0 + ord(name))
    first, second = search.suggest("first"), search.suggest("second")
    kept = pickle.dumps(search)
    search.save(str(tmp_path / "state.pkl"))
    lost = search.suggest("lost")  # Tune had not saved it
    resumed = pickle.loads(kept)
    resumed.restore(str(tmp_path / "state.pkl"))
    assert resumed.suggest("third") == lost != second != first
    end(resumed, "first", 1.0)
    assert [config[ID] for config in drain(resumed)] == ["c003", "c004", "c005"]


def test_no_confirmation(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", confirmation=None, trials=2)
    for name in "ab":
        search.suggest(name)
        end(search, name, 20.0)
    assert search.suggest("c")[ID] == "t002"  # Tune ends the search after its number of samples


def test_search_of_version_01_has_no_confirmation(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", confirmation=None)
    for name in ("_confirmation", "_confirming", "_confirmed", "_search_trials"):
        del search.__dict__[name]
    resumed = pickle.loads(pickle.dumps(search))
    assert resumed.suggest("a")[ID] == "t000"
    end(resumed, "a", 20.0)


def test_configs_are_plain(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", trials=2)
    for name in "ab":
        search.suggest(name)
        end(search, name, 20.0)
    assert json.loads(json.dumps(drain(search)))
