"""TPE looks at a limited number of trials, and Optuna reads the journal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps.running import optuna_study
from sweeps.running.optuna_study import Journal, RecentTPE, new_trial

RANGE = optuna.distributions.FloatDistribution(0.0, 1.0)


def study_of(values: list[float], sampler: optuna.samplers.BaseSampler, storage: JournalStorage | None = None):
    study = optuna.create_study(direction="maximize", sampler=sampler, storage=storage)
    for number, value in enumerate(values):
        pruned = number % 2
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                value=None if pruned else value,
                params={"x": value},
                distributions={"x": RANGE},
                intermediate_values={1: value},
            )
        )
    return study


VALUES = [k * 7 % 40 / 40 for k in range(40)]


def test_proposals_are_those_of_tpe_below_the_limit() -> None:
    ours, theirs = (
        study_of(VALUES, kind(seed=3, multivariate=True)) for kind in (RecentTPE, optuna.samplers.TPESampler)
    )
    assert ours.ask({"x": RANGE}).params == theirs.ask({"x": RANGE}).params


def test_the_best_and_the_newest_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_study, "LOOKED_AT", 10)
    monkeypatch.setattr(optuna_study, "_BEST", 3)
    study = study_of(VALUES, RecentTPE(seed=3, multivariate=True))
    running = study.ask({"x": RANGE})
    seen = study.sampler._part._get_trials()
    best = sorted(range(0, 40, 2), key=lambda number: -VALUES[number])[:3]
    rest = [number for number in range(40) if number not in best][-7:]
    assert [trial.number for trial in seen] == sorted([*best, *rest, running.number])


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_sampler_that_goes_on_looks_at_what_a_new_one_would(monkeypatch: pytest.MonkeyPatch, direction: str) -> None:
    """Trials end in another order than they began; some fail, and values are equal."""
    monkeypatch.setattr(optuna_study, "LOOKED_AT", 12)
    monkeypatch.setattr(optuna_study, "_BEST", 4)
    study, draw = optuna.create_study(direction=direction), np.random.default_rng(5)
    sampler, running = RecentTPE(seed=0, multivariate=True), []
    for number in range(60):
        study.sampler = sampler = RecentTPE(sampler, seed=number, multivariate=True)
        running.append(new_trial(study))
        running[-1].suggest_float("x", 0, 1)
        seen = [trial.number for trial in sampler._part._get_trials()]
        study.sampler = other = RecentTPE(seed=number, multivariate=True)
        new_trial(study).suggest_float("x", 0, 1)
        assert seen == [trial.number for trial in other._part._get_trials()][:-1]
        study.tell(2 * number + 1, state=TrialState.FAIL)
        if len(running) == 4:
            one = running.pop(int(draw.integers(4)))
            one.report(float(draw.integers(5)), 1)
            state = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)[number % 7 % 3]
            study.tell(one, float(draw.integers(5)) if state == TrialState.COMPLETE else None, state=state)


def test_optuna_reads_the_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "optuna.journal")
    written = study_of(VALUES, RecentTPE(seed=3), JournalStorage(Journal(path)))
    read = optuna.load_study(study_name=written.study_name, storage=JournalStorage(JournalFileBackend(path)))
    assert [(t.state, t.params, t.value) for t in read.trials] == [(t.state, t.params, t.value) for t in written.trials]
