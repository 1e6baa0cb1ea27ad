"""A search goes on: more trials after a confirmation, longer finalists, other samplers, trials of another run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from search_spaces import SAMPLERS, Choice, Float, Int, Point, SearchSpace, When
from sweeps.planning.confirmation import Confirmation
from sweeps.planning.objectives import Constraint, Objective
from sweeps.recording.tables import RunTables
from sweeps.running.samplers import LEAST_RANDOM, grid, text_of
from sweeps.running.search import SweepSearch
from sweeps.running.warm_start import Earlier, kept_trials, read_warm_start, write_trials
from sweeps.trial_config import CONFIRMATION, ID, LABEL, PARAMETERS, SEED
from tests.sweeps.running.test_confirming_search import SPACE, drain, end, row, searching
from trainables.common.errors import InputError


def confirmed(folder: Path, trials: int = 4) -> list[dict[str, Any]]:
    """The rows of a run that is over: trial k has the value 20 + k."""
    search = searching(folder / "journal", trials=trials)
    rows = []
    for k in range(trials):
        rows.append(row(search.suggest(f"trial{k}"), 20.0 + k) | {"steps": 8})
        end(search, f"trial{k}", 20.0 + k)
    return rows + [row(config, 30.0) | {"steps": 8} for config in drain(search)]


def test_added_trials_are_confirmed_too_and_earlier_finalists_stay(tmp_path: Path) -> None:
    rows = confirmed(tmp_path)
    earlier = [text_of({"x": r["config/x"]}) for r in rows if r["kind"] == CONFIRMATION]
    resumed = searching(tmp_path / "again", trials=6, rows=rows)
    added = [resumed.suggest("a"), resumed.suggest("b")]
    assert [config[ID] for config in added] == ["t004", "t005"]
    assert resumed.suggest("too early") is None
    for name, value in (("a", 99.0), ("b", 0.0)):
        end(resumed, name, value)
    left = drain(resumed)
    # Of the new leaders, t004 and t003, the second one is confirmed already.
    assert [config[ID] for config in left] == ["c006", "c007"]
    assert all(config[PARAMETERS] == added[0][PARAMETERS] for config in left)
    assert len({config[SEED] for config in left} | {r["seed"] - 5 for r in rows}) == len(left) + len(
        {r["seed"] for r in rows}
    )
    # A driver that is killed in the new confirmation, and a plain resume.
    again = [*rows, *(row(c, v) | {"steps": 8} for c, v in zip(added, (99.0, 0.0), strict=True)), row(left[0])]
    assert drain(searching(tmp_path / "third", trials=6, rows=again)) == left
    assert text_of(added[0][PARAMETERS]) not in earlier


def test_nothing_is_confirmed_again_if_the_leaders_stay(tmp_path: Path) -> None:
    resumed = searching(tmp_path / "again", trials=6, rows=confirmed(tmp_path))
    for name in "ab":
        resumed.suggest(name)
        end(resumed, name, 1.0)
    assert resumed.left == 0


def test_longer_finalists_continue_and_the_search_stays(tmp_path: Path) -> None:
    rows = confirmed(tmp_path)
    search = SweepSearch(
        SPACE, "val/psnr", "max", 0, 4, 8, tmp_path / "again", Confirmation(2, 2), rows, first_seed=5,
        confirmation_steps=12,
    )  # fmt: skip
    known = [r for r in rows if r["kind"] == CONFIRMATION]
    left = drain(search)
    assert [config[ID] for config in left] == [r["id"] for r in known]
    assert [config[PARAMETERS]["x"] for config in left] == [r["config/x"] for r in known]
    assert [5 + config[SEED] for config in left] == [r["seed"] for r in known]
    ended = [r | {"steps": 12} if r["kind"] == CONFIRMATION else r for r in rows]
    search = SweepSearch(
        SPACE, "val/psnr", "max", 0, 4, 8, tmp_path / "over", Confirmation(2, 2), ended, first_seed=5,
        confirmation_steps=12,
    )  # fmt: skip
    assert search.left == 0


NUMBERS = SearchSpace(
    name="x",
    question="Which x and n?",
    method="sinsr",
    parameters={"x": Float(0.01, 1.0, log=True), "n": Int(1, 3)},
    points=(Point("low", {"x": 0.1, "n": 1}), Point("again", {"x": 0.1, "n": 1}), Point("high", {"x": 0.9, "n": 2})),
    objective="val/psnr",
)


def proposals(folder: Path, sampler: str, space: SearchSpace = NUMBERS, trials: int = 14) -> list[dict[str, Any]]:
    search = SweepSearch(space, "val/psnr", "max", 0, trials, 8, folder / sampler, sampler=sampler)
    found = []
    for k in range(trials):
        found.append(search.suggest(str(k)))
        x = found[-1][PARAMETERS].get("x", 0.5)
        end(search, str(k), 20.0 - (x - 0.3) ** 2 + 0.01 * k)
    return found


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_propose_within_the_space_and_alike_after_a_resume(tmp_path: Path, sampler: str) -> None:
    found = proposals(tmp_path, sampler)
    assert [config[ID] for config in found] == [f"t{k:03d}" for k in range(14)]
    for config in found:
        assert all(NUMBERS.distributions[name].contains(value) for name, value in config[PARAMETERS].items())
    assert len({text_of(config[PARAMETERS]) for config in found}) >= 10
    rows = [
        row(config, 20.0 - (config[PARAMETERS]["x"] - 0.3) ** 2 + 0.01 * k) | {"steps": 8}
        for k, config in enumerate(found[:11])
    ]
    resumed = SweepSearch(
        NUMBERS, "val/psnr", "max", 0, 14, 8, tmp_path / "resumed", rows=rows, first_seed=5, sampler=sampler
    )
    assert resumed.suggest("next") == found[11]


def test_equal_points_count_once_before_a_model_proposes(tmp_path: Path) -> None:
    """Three points of which two are the same: the first random proposals are those of random search."""
    by_tpe, random = proposals(tmp_path, "tpe"), proposals(tmp_path, "random")
    first = max(5, 2 + LEAST_RANDOM) + 1  # one point counts no second time
    assert by_tpe[:first] == random[:first]
    assert by_tpe[first:] != random[first:]


def test_grid_has_every_combination_once_then_again_with_another_seed(tmp_path: Path) -> None:
    space = SearchSpace(
        name="x",
        question="Which?",
        method="sinsr",
        parameters={"a": Choice(("p", "q")), "b": When({"a": ("q",)}, Int(1, 3))},
        points=(Point("p", {"a": "p"}),),
        objective="val/psnr",
    )
    assert list(grid(space)) == [
        text_of(values) for values in ({"a": "p"}, {"a": "q", "b": 1}, {"a": "q", "b": 2}, {"a": "q", "b": 3})
    ]
    found = proposals(tmp_path, "grid", space, trials=6)
    assert len({text_of(config[PARAMETERS]) for config in found[:4]}) == 4
    assert [config[SEED] for config in found] == [0, 0, 0, 0, 1, 1]
    levels = [values["x"] for values in grid(NUMBERS).values() if values["n"] == 1]
    assert levels == pytest.approx([0.01, 0.0316, 0.1, 0.316, 1.0], rel=0.01)


def of_journal(journal: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name="x", storage=JournalStorage(JournalFileBackend(str(journal)))).trials


def test_stopped_trials_of_an_earlier_driver_have_their_last_value_in_the_journal(tmp_path: Path) -> None:
    rows = [
        {"id": "t000", "kind": "trial", "status": "stopped", "label": "low", "seed": 5, "steps": 4, "val/psnr": 4.0,
         "config/x": 0.1, "checkpoint": "trials/t000/checkpoint_000004"},
    ]  # fmt: skip
    reports = [{"step": 4, "val/psnr": 4.0}, {"step": 2, "val/psnr": 3.0}]
    SweepSearch(SPACE, "val/psnr", "max", 0, 4, 8, tmp_path / "journal", rows=rows, reports_of=lambda id: reports)
    (trial,) = of_journal(tmp_path / "journal")
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 4.0, {2: 3.0, 4: 4.0})
    assert trial.user_attrs["picture"] == "trials/t000/checkpoint_000004/grid.png"
    assert (trial.user_attrs["label"], trial.user_attrs["val/psnr"]) == ("low", 4.0)


def test_torn_journal_of_another_run_costs_nothing(tmp_path: Path) -> None:
    """It is made again from the record of this run."""
    journal = tmp_path / "journal"
    rows = confirmed(tmp_path)
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    searching(journal, rows=rows)
    assert [trial.state for trial in of_journal(journal)] == [TrialState.COMPLETE] * 4


def test_several_objectives_reach_optuna_and_their_front_is_confirmed(tmp_path: Path) -> None:
    search = SweepSearch(
        SPACE, "val/psnr", "max", 0, 6, 8, tmp_path / "journal", Confirmation(3, 2),
        further=(Objective("val/lpips", "min"),), constraints=(Constraint("val/psnr", 20.0, True),),
    )  # fmt: skip
    values = [(22.0, 0.5), (30.0, 0.9), (21.0, 0.1), (25.0, 0.3), (19.0, 0.05), (24.0, 0.8)]
    configs = []
    for k, (psnr, lpips) in enumerate(values):
        configs.append(search.suggest(str(k)))
        search.on_trial_complete(str(k), {"val/psnr": psnr, "val/lpips": lpips, "step": 8 if k < 5 else 2})
    trials = of_journal(tmp_path / "journal")
    assert [trial.values for trial in trials] == [list(pair) for pair in values]
    assert [trial.constraints["val/psnr>=20"] for trial in trials] == [20.0 - psnr for psnr, _ in values]
    left = drain_several(search)
    # The baseline; the ends of the front and its knee. t004 misses the constraint, t005 was stopped.
    assert [config[PARAMETERS] for config in left[:4]] == [configs[k][PARAMETERS] for k in (0, 1, 2, 3)]
    assert len(left) == 8


def drain_several(search: SweepSearch) -> list[dict[str, Any]]:
    found = []
    while search.left:
        found.append(search.suggest(f"again {len(found)}"))
        search.on_trial_complete(f"again {len(found) - 1}", {"val/psnr": 1.0, "val/lpips": 1.0, "step": 8})
    return found


def write_run(folder: Path, rows: Sequence[dict[str, Any]], steps: int = 8, validation: str = "pairs-1") -> Path:
    """The files of another run, of a space that searched x."""
    folder.mkdir()
    trial = {"training.max_steps": steps, "n": 2, "y": 1.0, "depth": 4, "training.seed": 0}
    record = {"trial": trial, "stores": {"validation pairs": validation, "train pairs": "pairs-2"}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(record))
    tables = RunTables(folder)
    for one in rows:
        tables.upsert_trial(one)
    tables.flush(force=True)
    return folder


def other(number: int, x: float, value: float | None, steps: int = 8, **more: Any) -> dict[str, Any]:
    status = "finished" if steps == 8 else "stopped"
    return {"id": f"t{number:03d}", "kind": "trial", "status": status, "steps": steps, "val/psnr": value,
            "config/x": x, **more}  # fmt: skip


HERE = {"training.max_steps": 8, "y": 1.0, "depth": 3, "training.seed": 1, "training.keep": "last", "metrics.border": 0}
STORES = {"validation pairs": "pairs-1", "train pairs": "pairs-9"}


def read(run: Path) -> list[Earlier]:
    found, others = read_warm_start(run, NUMBERS, HERE, STORES, ["val/psnr"])
    assert others == ["depth"]
    return found


def test_trials_of_another_run_reach_the_sampler_alone(tmp_path: Path) -> None:
    rows = [
        other(0, 0.2, 21.0), other(1, 0.5, 20.0, steps=2), other(2, 7.0, 30.0),
        other(3, 0.3, 22.0, **{"config/y": 2.0}),
        {"id": "bicubic", "kind": "control", "status": "control", "val/psnr": 19.0},
    ]  # fmt: skip
    found = read(write_run(tmp_path / "run", rows))
    # t002 is outside of the range, t003 had another y; n was not searched there, and was 2.
    assert [(one.parameters, one.steps, one.source) for one in found] == [
        ({"x": 0.2, "n": 2}, 8, "run t000"),
        ({"x": 0.5, "n": 2}, 2, "run t001"),
    ]
    write_trials(tmp_path, found)
    assert kept_trials(tmp_path) == found
    search = SweepSearch(NUMBERS, "val/psnr", "max", 0, 4, 8, tmp_path / "journal", Confirmation(2, 2), warm=found)
    configs = [search.suggest(name) for name in "abcd"]
    assert [config[ID] for config in configs] == ["t000", "t001", "t002", "t003"]
    assert [config[LABEL] for config in configs[:3]] == ["low", "again", "high"]
    for k, name in enumerate("abcd"):
        end(search, name, 10.0 + k)
    trials = of_journal(tmp_path / "journal")
    assert [trial.state for trial in trials[:2]] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert trials[0].user_attrs["warm_start"] == "run t000" and len(trials) == 6
    left = drain(search)  # the leader of the other run is not a finalist
    assert {text_of(config[PARAMETERS]) for config in left} <= {text_of(config[PARAMETERS]) for config in configs}


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([other(0, 0.2, 21.0)], {"steps": 9}, "trained 9 steps; expected 8"),
        ([other(0, 0.2, 21.0)], {"validation": "pairs-7"}, "was validated on other images"),
        ([other(0, 0.2, None)], {}, "did not measure val/psnr"),
        ([other(0, 7.0, 21.0)], {}, "none of its 1 trials belongs to the space x"),
        ([], {}, "none of its trials has ended"),
    ],
)
def test_run_that_is_not_comparable_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"--warm-start .*{message}"):
        read(write_run(tmp_path / "run", rows, **changes))


def test_folder_without_a_run_is_no_warm_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--warm-start .*: not the folder of a run .*; expected one with a settings"):
        read(tmp_path)
    (tmp_path / "settings.yaml").write_text("stores: [")
    with pytest.raises(InputError, match=r"--warm-start .*/settings.yaml: "):
        read(tmp_path)
    (tmp_path / "warm_start.json").write_text(json.dumps([{"parameters": {}}]))
    with pytest.raises(InputError, match=r"warm_start.json: cannot be read .*; delete it to go on without"):
        kept_trials(tmp_path)
