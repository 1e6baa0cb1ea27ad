"""TPE looks at a limited number of trials, and Optuna reads the journal."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from sweeps.running import optuna_study
from sweeps.running.optuna_study import Journal, RecentTPE

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
    seen = optuna_study._Part(study)._get_trials()
    best = sorted(range(0, 40, 2), key=lambda number: -VALUES[number])[:3]
    rest = [number for number in range(40) if number not in best][-7:]
    assert [trial.number for trial in seen] == sorted([*best, *rest, running.number])


def test_optuna_reads_the_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "optuna.journal")
    written = study_of(VALUES, RecentTPE(seed=3), JournalStorage(Journal(path)))
    read = optuna.load_study(study_name=written.study_name, storage=JournalStorage(JournalFileBackend(path)))
    assert [(t.state, t.params, t.value) for t in read.trials] == [(t.state, t.params, t.value) for t in written.trials]
