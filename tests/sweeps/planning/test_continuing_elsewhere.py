"""A run goes on as it was started: in another version of the project, and with its inputs at other places."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import search_spaces
from search_spaces import Float, Point
from sweeps.command_line import main
from sweeps.planning.plan import make_plan
from sweeps.planning.question import Question, resolve
from sweeps.planning.run_folder import create_run, reopen_run
from sweeps.planning.run_settings import started_with
from sweeps.planning.settings import SweepSettings
from trainables.common.errors import InputError
from trainables.pretrained.base_model import SHIPPED_BASE
from trainables.settings import flatten
from trainables.settings.presets import PRESETS

METRICS = ("val/psnr", "val/psnr_y", "val/ssim", "val/ssim_y")
SMALL = (("pairs.train_pairs", "8"), ("pairs.validation_pairs", "2"), ("pairs.test_pairs", "3"))


@pytest.fixture
def later_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Changes the preset's values for each method, and the points and ranges of a space."""
    before = PRESETS["sample-print"]
    methods = {
        method: {**values, "training.learning_rate": 0.5, "training.batch_size": 16, "diffusion.start_timestep": 30}
        for method, values in before.methods.items()
    }
    trial = replace(before.trial, training=replace(before.trial.training, ema_decay=0.5))
    monkeypatch.setitem(PRESETS, "sample-print", replace(before, methods=methods, trial=trial, trials=99))
    for name in ("beat_pix2pix", "lora", "prediction_type"):
        space = search_spaces.load(name)
        points = (Point("another", space.points[0].values), *reversed(space.points))
        known = set(space.parameters) & {"training.rate_factor"}
        ranges = {**space.parameters, **dict.fromkeys(known, Float(0.05, 20.0, log=True))}
        monkeypatch.setitem(search_spaces.OWN, name, replace(space, points=points, parameters=ranges, proposals=50))


def _trials(question: Question) -> list[object]:
    """All that decides how the search and its trials run."""
    trained = [flatten(trial) for trial in (*question.outer_configurations(), question.trial, *question.every_method)]
    return [trained, question.trials, question.space]


@pytest.mark.parametrize("name", ["beat_pix2pix", "lora", "prediction_type"])
def test_a_run_goes_on_as_it_was_started(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    given = (("training.weight_decay", "0.02"),)
    settings = SweepSettings(name, results=str(tmp_path), set=given, max_steps=40, seed=3)
    first = resolve(settings)
    create_run(first, METRICS, METRICS[:1], {}).close()
    started = _trials(first)
    request.getfixturevalue("later_version")
    assert _trials(resolve(settings)) != started
    (path,) = tmp_path.glob("*/*")
    again = reopen_run(path)
    again.folder.close()
    assert _trials(resolve(again.settings, again.started)) == started
    (path / "space.json").unlink()
    for _ in range(2):  # the first refusal leaves no lock
        with pytest.raises(InputError, match=r"its space.json is missing; put back a copy"):
            reopen_run(path)


def test_a_run_of_an_earlier_version_keeps_what_it_recorded(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """It had neither its space nor the settings of its methods, but those of its baseline."""
    first = resolve(SweepSettings("lora", results=str(tmp_path)))
    training = first.trial.training
    with closing(create_run(first, METRICS, METRICS[:1], {})) as folder:
        (folder.path / "space.json").unlink()
        record = yaml.safe_load((folder.path / "settings.yaml").read_text())
        del record["methods"]
        record["trial"]["training.a_setting_of_then"] = 1
        (folder.path / "settings.yaml").write_text(yaml.safe_dump(record))
    request.getfixturevalue("later_version")
    reopened = reopen_run(folder.path)
    reopened.folder.close()
    settings, record = reopened.settings, reopened.record
    again = resolve(settings, reopened.started)
    assert "an earlier version started this run" in reopened.notes[0]
    record["trial"]["training.batch_size"] = "many\nlines"
    with pytest.raises(InputError, match=r"^settings.yaml of the run: training.batch_size=many lines: expected"):
        resolve(settings, started_with(folder.path, record)[0])
    record["trial"]["lora.rank"] = 64
    with pytest.raises(InputError, match=r"the space lora has another baseline now: lora.rank was 64 and is 32"):
        started_with(folder.path, record)
    assert again.trial.training == training != resolve(SweepSettings("lora")).trial.training


def _photographs(folder: Path, seed: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def test_photographs_and_weights_may_be_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then, now, others = (tmp_path / name for name in ("then", "now", "others"))
    _photographs(then, 0)
    _photographs(others, 1)
    shutil.copytree(SHIPPED_BASE, tmp_path / "base")
    given = (*SMALL, ("base.weights", str(tmp_path / "base")))
    settings = SweepSettings("lora", results=str(tmp_path / "results"), data=str(then), set=given, perceptual="none")
    question = resolve(settings)
    plan = make_plan(question, download=False)
    folder = create_run(question, plan.metrics, plan.metrics[:1], plan.stores)
    folder.close()
    resume = ("--resume", str(folder.path), "--dry-run")

    then.rename(now)
    assert main(resume) == 2
    assert f"--data {then} is not there; if it has been moved, give --data PLACE" in capsys.readouterr().err
    assert main([*resume, "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not there; expected the place where it is now" in capsys.readouterr().err
    assert main([*resume, "--data", str(now), "--set", f"base.weights={tmp_path / 'nowhere'}"]) == 2
    assert "base.weights " + str(tmp_path / "nowhere is not there; expected the place") in capsys.readouterr().err
    assert main([*resume, "--data", str(others)]) == 2
    assert "the photographs, weights or code for" in capsys.readouterr().err
    assert main([*resume, "--data", str(now)]) == 0
    (tmp_path / "base").rename(tmp_path / "moved")
    assert main([*resume, "--data", str(now)]) == 2
    assert "is not there; if it has been moved, give --set base.weights=PLACE" in capsys.readouterr().err
    assert main([*resume, "--data", str(now), "--set", "training.batch_size=2"]) == 2
    assert "expected the place of weights that have been moved: autoencoder.weights" in capsys.readouterr().err
    base = f"base.weights={tmp_path / 'moved'}"
    assert main([*resume, "--data", str(now), "--set", base]) == 0
    unet = tmp_path / "moved" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight + 1 for name, weight in load_file(unet).items()}, unet, {"format": "pt"})
    assert main([*resume, "--data", str(now), "--set", base]) == 2
    assert f"{base}: not the weights that the run was started with" in capsys.readouterr().err
    shipped = resolve(replace(settings, set=SMALL, data=str(now)))
    folder = create_run(shipped, plan.metrics, plan.metrics[:1], plan.stores)
    folder.close()
    assert main(["--resume", str(folder.path), "--dry-run", "--set", base]) == 2
    assert f"{base}: no weights on this machine are those that the run was started with" in capsys.readouterr().err


def test_the_new_place_is_kept(tmp_path: Path) -> None:
    settings = SweepSettings("lora", results=str(tmp_path), data="photographs", set=SMALL)
    with closing(create_run(resolve(settings), METRICS, METRICS[:1], {})) as folder:
        record = yaml.safe_load((folder.path / "settings.yaml").read_text())
        folder.go_on(record, replace(settings, trials=8, data="elsewhere"), 8)
        record = yaml.safe_load((folder.path / "settings.yaml").read_text())
    assert record["command"]["data"] == str(Path("elsewhere").absolute())
    assert [*record["continued"][0]] == ["at", "data"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("methods", {"pix2pix": 3}, "methods.pix2pix is 3; expected names with their values"),
        ("methods", {"pix2pix": {"pix2pix.ngf": ["HUGE"]}}, "pix2pix.ngf is a number of 20000 bits"),
        ("trial", {"training.batch_size": "HUGE"}, "training.batch_size is a number of 20000 bits"),
        ("trial", None, "trial is missing"),
        ("weights", 1, "weights is 1"),
        ("continued", 3, "continued is no list"),
    ],
)
def test_damaged_records_are_refused_in_one_line(tmp_path: Path, key: str, value: object, said: str) -> None:
    create_run(resolve(SweepSettings("lora", results=str(tmp_path))), METRICS, METRICS[:1], {}).close()
    (path,) = tmp_path.glob("*/*")
    record = yaml.safe_load((path / "settings.yaml").read_text())
    record[key] = value
    written = yaml.safe_dump(record).replace("HUGE", "0x" + "f" * 5000)  # too long for a decimal in a message
    (path / "settings.yaml").write_text(written)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        reopen_run(path)
    assert "\n" not in str(error.value)
