"""Objectives, constraints, limits and what a resumed run may change, from the command line's texts."""

from __future__ import annotations

import argparse
import math
from typing import Any

import pytest
import yaml

from search_spaces import SearchSpace
from sweeps.answering.several import pareto_front
from sweeps.planning.budget import expectation, time_span
from sweeps.planning.continuing import continued, spent_seconds
from sweeps.planning.objectives import Constraint, Objective, feasible, parse_constraint
from sweeps.planning.pareto import ends_and_knee
from sweeps.planning.question import flags, resolve, resolve_objectives
from sweeps.planning.run_settings import settings_in
from sweeps.planning.settings import SweepSettings
from trainables.common.errors import InputError

REPORTED = ("val/psnr", "val/psnr_y", "val/ssim", "val/lpips")


def asked(**changes: Any) -> SweepSettings:
    return SweepSettings("sinsr_loss_ratios", **changes)


def resolved(**changes: Any) -> tuple[str, ...]:
    settings = asked(**changes)
    return resolve_objectives(settings, resolve(settings).space, REPORTED)


def test_objectives() -> None:
    assert resolved(objective="psnr, val/lpips") == ("val/psnr", "val/lpips")
    assert resolved(objective="ssim") == ("val/ssim",)
    assert resolve(asked(objective="psnr,lpips", confirm=1)).confirmation.finalists == 3
    assert resolve(asked(objective="psnr,lpips", confirm=0)).confirmation.finalists == 0
    assert resolve(asked(objective="psnr")).confirmation.finalists == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "psnr,psnr"}, r"--objective psnr,psnr: psnr is given twice"),
        ({"objective": "psnr,val/psnr"}, r"psnr is given twice; expected different metrics"),
        ({"objective": "perceptual,lpips"}, r"--objective perceptual,lpips: val/lpips is there twice"),
        ({"objective": "psnr,"}, r"--objective psnr,: a name is empty"),
        ({"objective": "psnr,sharpness"}, r"--objective sharpness: no such metric; expected perceptual, psnr"),
        ({"objective": "psnr,musiq"}, r"--objective val/musiq: this sweep reports val/psnr"),
        (
            {"objective": "psnr,ssim", "set": (("training.keep", "best"),)},
            r"training.keep=best: one objective decides, not val/psnr, val/ssim; expected last",
        ),
        ({"constraint": ("psnr",)}, r"--constraint psnr: expected METRIC>=NUMBER or METRIC<=NUMBER"),
        ({"constraint": ("psnr>=high",)}, r"--constraint psnr>=high: high is no finite number"),
        ({"constraint": ("psnr>=nan",)}, r"nan is no finite number"),
        ({"constraint": ("beauty>=1",)}, r"--constraint beauty: no such metric"),
        ({"constraint": ("musiq>=1",)}, r"--constraint musiq>=1: this sweep reports .*; val/musiq is not among them"),
        ({"sampler": "bayes"}, r"--sampler bayes: expected one of tpe, gp, random, grid, cmaes"),
        ({"budget_usd": 3.0}, r"--budget-usd 3: needs --price-per-hour"),
        ({"confirm_steps": 10, "max_steps": 300}, r"--confirm-steps 10: expected 300 or more"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolved(**changes)


def test_sampler_of_the_space_is_recorded_and_cma_es_wants_numbers() -> None:
    assert resolve(asked()).settings.sampler == "tpe"
    with pytest.raises(InputError, match=r"--sampler cmaes: needs numbers .* searches method"):
        resolve(SweepSettings("latent_or_pixel", sampler="cmaes"))
    with pytest.raises(InputError, match=r"--sampler cmaes: searches for one objective, not 2"):
        resolve(asked(sampler="cmaes", objective="psnr,ssim"))
    assert resolve(asked(sampler="cmaes")).settings.sampler == "cmaes"
    space = resolve(asked()).space
    with pytest.raises(ValueError, match="sampler 'bayes' is none of"):
        SearchSpace("x", "?", "sinsr", space.parameters, space.points, "val/psnr", sampler="bayes")


def test_constraint() -> None:
    least, most = parse_constraint("val/psnr >= 24"), parse_constraint("lpips<=0.3")
    assert (str(least), str(most)) == ("val/psnr>=24", "val/lpips<=0.3")
    assert least.excess({"val/psnr": 23.0}) == 1.0 and most.excess({"val/lpips": 0.1}) == pytest.approx(-0.2)
    assert feasible([least, most], {"val/psnr": 24.0, "val/lpips": 0.3})
    assert not feasible([least], {"val/psnr": None}) and not feasible([least], {"val/psnr": math.nan})


def test_front_ends_and_knee() -> None:
    found = {"a": (1.0, 9.0), "b": (5.0, 8.0), "c": (9.0, 1.0), "inside": (4.0, 4.0), "d": (1.5, 8.9)}
    assert ends_and_knee(found) == ["c", "a", "b", "d", "inside"]
    assert ends_and_knee({}) == []
    rows = [
        {"kind": "trial", "status": "finished", "config/x": k, "val/psnr": p, "val/lpips": q}
        for k, (p, q) in enumerate([(20.0, 0.1), (30.0, 0.5), (19.0, 0.3), (25.0, None)])
    ]
    front = pareto_front(rows, [Objective("val/psnr", "max"), Objective("val/lpips", "min")])
    assert [group[0]["config/x"] for group in front] == [1, 0]


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400)]
)
def test_time_span(text: str, seconds: float) -> None:
    assert time_span(text) == seconds
    assert asked(time_budget=seconds).seconds == seconds


@pytest.mark.parametrize("text", ["8", "h", "8 hours", "0s", "-1h", "8h!", ""])
def test_time_without_a_unit_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a time such as 8h, 90m, 1h30m or 45s"):
        time_span(text)


def test_money() -> None:
    assert asked(budget_usd=5.0, price_per_hour=2.5).seconds == 7200
    assert asked(budget_usd=5.0, price_per_hour=2.5, time_budget=60.0).seconds == 60
    assert expectation(60.0, 3600.0, 1800.0, 2.0) == (
        "about 1 h 31 min, 3.03 USD at 2 USD an hour: search 1 h 0 min if no trial is stopped, confirmation 30 min, "
        "preparation 1 min"
    )


def test_settings_survive_their_file_and_their_flags() -> None:
    line = flags(asked(constraint=("val/psnr>=24",), time_budget=90.0, sampler="gp"))
    assert line[2:] == ["--constraint", "val/psnr>=24", "--sampler", "gp", "--time-budget", "90s"]
    text = b"command: {space: x, confirm: 1, constraint: ['psnr>=2'], time_budget: 60, sampler: gp, set: []}\n"
    settings, _ = settings_in(yaml.safe_load(text + b"metrics: [val/psnr]\nstores: {}\n"))
    assert (settings.constraint, settings.time_budget, settings.sampler) == (("psnr>=2",), 60.0, "gp")


def test_resumed_run_takes_more_trials_and_longer_finalists() -> None:
    settings, notes = continued(asked(trials=9, max_steps=300), {"--trials": 12, "--max-steps": 600}, spent=0.0)
    assert (settings.trials, settings.confirm_steps, settings.max_steps) == (12, 600, 300)
    assert len(notes) == 1 and "training.schedule=cosine ends at its last step" in notes[0]
    again, notes = continued(settings, {"--trials": 12, "--max-steps": 600}, spent=0.0)
    assert again == settings and not notes


@pytest.mark.parametrize(
    ("given", "changes", "message"),
    [
        ({"--trials": 3}, {"trials": 9}, "--trials 3: the run has 9 already"),
        ({"--max-steps": 100}, {"max_steps": 300}, "--max-steps 100: the finalists train 300 already"),
        ({"--max-steps": 600}, {"confirm": 0}, "--max-steps 600: the run has no confirmation"),
    ],
)
def test_resumed_run_does_not_shrink(given: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        continued(asked(**changes), given, spent=0.0)


def test_limits_of_a_resumed_run_count_from_its_command() -> None:
    rows = [{"wall_seconds": 100.0}, {"wall_seconds": None}, {"wall_seconds": 60.0}]
    spent = spent_seconds(rows, None, 2)
    assert spent == 80.0
    assert spent_seconds(rows, 200.0, 2) == 200.0
    settings, _ = continued(asked(time_budget=100.0), {"--time-budget": 50.0}, spent)
    assert settings.seconds - spent == 50.0
    settings, _ = continued(asked(time_budget=100.0, price_per_hour=36.0), {"--budget-usd": 2.0}, spent)
    assert settings.seconds - spent == pytest.approx(200.0)
    settings, _ = continued(asked(time_budget=100.0), {}, spent)
    assert settings.seconds - spent == 20.0


def test_constraint_is_plain() -> None:
    assert Constraint("val/psnr", 24.0, True) == parse_constraint("psnr>=24")
