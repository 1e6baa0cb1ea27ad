"""The search proposes its trials, waits for their ends, and then proposes those of the confirmation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from search_spaces import Float, Point, SearchSpace
from sweeps.planning.confirmation import Confirmation
from sweeps.recording.tables import ASKED_AGAIN
from sweeps.running.confirming import Begun, confirmations
from sweeps.running.search import SweepSearch
from sweeps.trial_config import CONFIRMATION, GIVEN, ID, KIND, LABEL, PARAMETERS, SEARCHED, SEED, TRIAL
from trainables.training.results import BEST

SPACE = SearchSpace(
    name="x",
    question="Which x?",
    method="sinsr",
    parameters={"x": Float(0.0, 1.0)},
    points=(Point("low", {"x": 0.1}), Point("high", {"x": 0.9})),
    objective="val/psnr",
)
CONFIRM = Confirmation(finalists=2, seeds=2)


def searching(
    journal: Path,
    confirmation: Confirmation | None = CONFIRM,
    trials: int = 4,
    rows: Sequence[dict[str, Any]] = (),
    space: SearchSpace = SPACE,
) -> SweepSearch:
    return SweepSearch(space, "val/psnr", "max", 0, trials, 8, journal, confirmation, rows, first_seed=5)


def end(search: SweepSearch, name: str, value: float, step: int = 8, error: bool = False) -> None:
    result = None if error else {"val/psnr": value, "step": step}
    if result:
        search.on_trial_result(name, result)
    search.on_trial_complete(name, result, error=error)


def drain(search: SweepSearch) -> list[dict[str, Any]]:
    """The trials of the confirmation, each ended at once."""
    found: list[dict[str, Any]] = []
    while search.left:
        config = search.suggest(f"again {len(found)}")
        assert config is not None
        end(search, f"again {len(found)}", 99.0)
        found.append(config)
    assert search.suggest("none") == Searcher.FINISHED
    return found


def row(config: dict[str, Any], value: float | None = None, status: str = "finished") -> dict[str, Any]:
    """The leaderboard's row of a trial."""
    return {
        "id": config[ID],
        "kind": config[KIND],
        "status": status if value is not None or status != "finished" else "interrupted",
        "label": config[LABEL],
        "seed": 5 + config[SEED],
        "val/psnr": value,
        **({SEARCHED: config[SEARCHED]} if SEARCHED in config else {}),
        **{f"config/{name}": found for name, found in config[PARAMETERS].items()},
    }


def test_trials_that_were_handed_out_are_known(tmp_path: Path) -> None:
    """Tune may be interrupted before it starts them: then no table has them, and they are still to be trained."""
    search = searching(tmp_path / "journal", None, trials=2)
    assert search.suggest("first") is not None and (search.handed_out, search.left) == (["t000"], 1)
    assert search.suggest("second") is not None and (search.handed_out, search.left) == (["t000", "t001"], 0)


def test_no_trial_is_handed_out_without_room(tmp_path: Path) -> None:
    """A cluster of fixed size gets another node, then loses two."""
    room = 1
    search = SweepSearch(SPACE, "val/psnr", "max", 0, 4, 8, tmp_path / "journal", CONFIRM, room=lambda: room)
    assert search.suggest("0") is not None and search.suggest("1") is None
    room = 3
    assert search.suggest("1") is not None and search.suggest("2") is not None and search.suggest("3") is None
    room = 1
    end(search, "0", 21.0)
    end(search, "1", 0.0, error=True)
    assert search.suggest("3") is None
    end(search, "2", 22.0)
    assert search.suggest("3") is not None
    end(search, "3", 23.0)
    confirming = search.suggest("4")
    assert confirming and confirming[KIND] == CONFIRMATION and search.suggest("5") is None


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
    study = search._study
    assert len(study.trials) == 4  # Optuna does not learn from the confirmation
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 3


def test_sampler_and_confirmation_see_the_best_step_that_a_trial_keeps(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", trials=2)
    for name, value, best in (("a", 1.0, 3.0), ("b", 2.0, 2.5)):
        search.suggest(name)
        search.on_trial_complete(name, {"val/psnr": value, "step": 8, BEST: [4, {"val/psnr": best}]})
    assert [trial.value for trial in search._study.trials] == [3.0, 2.5]


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


def confirmed(journal: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of a finished search, and the trials of its confirmation."""
    search = searching(journal)
    rows = []
    for k, name in enumerate("abcd"):
        rows.append(row(search.suggest(name), 20.0 + k))
        end(search, name, 20.0 + k)
    return rows, drain(search)


@pytest.mark.parametrize("begun", range(7))
def test_confirmation_is_resumed_with_the_same_trials(tmp_path: Path, begun: int) -> None:
    """A driver ends after it started some of them; of these, the first has finished."""
    rows, trials = confirmed(tmp_path / "journal")
    rows += [row(config, 30.0 if k == 0 else None) for k, config in enumerate(trials[:begun])]
    resumed = searching(tmp_path / "again", rows=rows)
    assert resumed.left == len(trials) - (begun > 0)
    assert drain(resumed) == trials[begun > 0 :]
    assert [trial.state for trial in resumed._study.trials] == [TrialState.COMPLETE] * 4


def test_finished_confirmation_leaves_nothing(tmp_path: Path) -> None:
    rows, trials = confirmed(tmp_path / "journal")
    rows += [row(config, 30.0) for config in trials]
    assert searching(tmp_path / "again", rows=rows).left == 0


def test_search_is_resumed_before_its_confirmation(tmp_path: Path) -> None:
    rows, trials = confirmed(tmp_path / "journal")
    resumed = searching(tmp_path / "again", rows=[*rows[:3], rows[3] | {"status": "interrupted"}])
    assert resumed.left == 1 + 6
    assert resumed.suggest("a")[ID] == "t003" and resumed.suggest("too early") is None
    end(resumed, "a", 23.0)
    assert drain(resumed) == trials


def test_failed_trial_of_the_search_is_tried_again_until_the_confirmation_begins(tmp_path: Path) -> None:
    """It could become a leader, after others have been confirmed."""
    rows, _ = confirmed(tmp_path / "journal")
    rows[2]["status"] = "failed"
    assert searching(tmp_path / "again", rows=rows).suggest("a")[ID] == "t002"
    trials = drain(searching(tmp_path / "without", rows=[*rows[:2], rows[2] | {"diverged": True}, rows[3]]))
    begun = [row(trials[0], 30.0), row(trials[1], status="failed")]
    assert drain(searching(tmp_path / "begun", rows=[*rows, *begun])) == trials[1:]


def test_configurations_that_have_begun_stay_if_results_of_the_search_are_lost(tmp_path: Path) -> None:
    rows, trials = confirmed(tmp_path / "journal")
    begun = [row(config) for config in trials[:3]]
    other = [one | {"val/psnr": 40.0 - k} for k, one in enumerate(rows)]  # other leaders
    assert drain(searching(tmp_path / "again", rows=[*other, *begun])) == trials


def test_whole_numbers_of_a_real_parameter_are_the_baseline(tmp_path: Path) -> None:
    points = (Point("one", {"x": 1}), Point("half", {"x": 0.5}))
    space = SearchSpace("x", "Which x?", "sinsr", {"x": Float(0.0, 1.0)}, points, "val/psnr")
    search = searching(tmp_path / "journal", trials=2, space=space)
    for name in "ab":
        search.suggest(name)
        end(search, name, 20.0)
    assert [config[LABEL] for config in drain(search)] == ["one", "half"] * 2


def test_no_confirmation(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", confirmation=None, trials=2)
    for name in "ab":
        search.suggest(name)
        end(search, name, 20.0)
    assert search.left == 0 and search.suggest("c") == Searcher.FINISHED


def test_configs_are_plain(tmp_path: Path) -> None:
    search = searching(tmp_path / "journal", trials=2)
    for name in "ab":
        search.suggest(name)
        end(search, name, 20.0)
    assert json.loads(json.dumps(drain(search)))


def test_leaders_stay_while_a_trial_of_the_search_is_repeated(tmp_path: Path) -> None:
    rows, trials = confirmed(tmp_path / "journal")
    rows[3] |= {"status": "interrupted", ASKED_AGAIN: True}
    rows += [row(config, 30.0 if k else None) for k, config in enumerate(trials)]
    resumed = searching(tmp_path / "again", rows=rows)
    assert resumed.expected == 1 + 1
    assert resumed.suggest("a")[ID] == "t003" and resumed.expected == 1
    end(resumed, "a", 23.0)
    assert resumed.expected == resumed.left == 1 and drain(resumed) == trials[:1]


def test_trials_that_never_began_keep_their_numbers_and_seeds() -> None:
    """Trials of a confirmation do not begin in their order: c001 was recorded, c000 and c002 were not."""
    base, best = ("base", {"x": 0.1}), ("best", {"x": 0.2})
    plan = Confirmation(finalists=1, seeds=3)
    undisturbed = {config[ID]: config for config in confirmations(plan, [base, best], {}, 8)}
    began = {
        number: Begun(each[LABEL], each[PARAMETERS], each[SEED], 8, ended=number == 3)
        for number in (1, 3)
        for each in [undisturbed[f"c{number:03d}"]]
    }
    left = {config[ID]: config for config in confirmations(plan, [base, best], began, 8)}
    assert left == {id: config for id, config in undisturbed.items() if id != "c003"}
