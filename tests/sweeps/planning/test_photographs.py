"""The plan says what a source holds, accepts pairs in folders of any names, and tells all that does not fit at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweeps.planning import resources
from sweeps.planning.photographs import FoundPhotographs, check_photographs
from sweeps.planning.plan import make_plan
from sweeps.planning.plan_text import plan_text
from sweeps.planning.question import resolve
from sweeps.planning.run_folder import create_run, reopen_run
from sweeps.planning.settings import SweepSettings
from trainables.common.errors import InputError
from trainables.data.__main__ import main
from trainables.images.sources.source import open_source
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset

SMALL = {"pairs.train_pairs": 8, "pairs.validation_pairs": 2, "pairs.validation_size": 64, "pairs.test_pairs": 3}


def _save(folder: Path, count: int, side: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Pairs of 32 -> 128 px, in folders with names of no meaning, far from each other."""
    before, after = tmp_path / "a" / "monday", tmp_path / "b" / "tuesday"
    _save(before, 12, 32)
    _save(after, 12, 128)
    return before, after


def _trial(source: Path, degraded: Path | str = "", **changes: Any) -> TrialSettings:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    values = {"method": "pix2pix", **SMALL, "data.source": str(source), "data.input": str(degraded), **named}
    return override(preset("sample").trial, values)


def _found(trial: TrialSettings, tmp_path: Path) -> FoundPhotographs:
    source = open_source(trial.data.source, trial.data.input)
    return check_photographs(trial, source, tmp_path, test=True)


def test_pairs_of_two_folders_are_used(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    found = _found(_trial(after, before), tmp_path)
    counts = found.counts
    assert found.paired and sum(counts.values()) == 12 and counts["test"] >= 3
    splits = f"{counts['train']} train, {counts['validation']} validation, {counts['test']} test"
    assert found.text() == f"12 pairs, 32 -> 128 px; {splits}; crops of 64 px"


def test_photographs_of_several_sizes_are_told(tmp_path: Path) -> None:
    _save(tmp_path / "photos", 12, 128)
    Image.new("RGB", (300, 200)).save(tmp_path / "photos" / "large.png")
    (tmp_path / "photos" / "broken.png").write_text("no image", encoding="utf-8")
    with pytest.warns(UserWarning, match="rejected"):
        text = _found(_trial(tmp_path / "photos", data__max_rejected=0.5), tmp_path).text()
    assert text.startswith("13 photographs, 128 to 300 x 200 px; ") and text.endswith("; 1 rejected")


def test_all_that_does_not_fit_is_told_at_once(folders: tuple[Path, Path], tmp_path: Path) -> None:
    before, after = folders
    trial = _trial(after, before, pairs__scale=2, pairs__image_size=256, pairs__validation_size=256)
    with pytest.raises(InputError) as caught:
        _found(trial, tmp_path)
    text = str(caught.value)
    assert "12 of 12 pairs do not have pairs.scale=2: monday/00.png is 32 x 32 and tuesday/00.png 128 x 128" in text
    assert "give --set pairs.scale=4, which fits all pairs" in text
    for setting in ("image_size", "validation_size", "test_size"):
        assert f"image is smaller than pairs.{setting}=256" in text
    assert text.count(str(after)) == 1 and "\n" not in text


def test_too_few_crops_of_both_splits_are_told_at_once(tmp_path: Path) -> None:
    _save(tmp_path / "photos", 12, 64)
    with pytest.raises(InputError, match=r"pairs\.validation_pairs=90 .*pairs\.test_pairs=91 "):
        _found(_trial(tmp_path / "photos", pairs__validation_pairs=90, pairs__test_pairs=91), tmp_path)


def test_settings_are_checked_together() -> None:
    changes = {"pairs.image_size": 30, "pairs.test_size": 50, "training.batch_size": 0, "training.reports": "x"}
    with pytest.raises(InputError) as caught:
        override(preset("sample").trial, changes)
    text = str(caught.value)
    assert all(f"{name}={value}: expected" in text for name, value in changes.items() if name != "training.batch_size")
    assert "of pairs.scale=4" in text
    with pytest.raises(InputError, match=r"training\.lr: no such .*learning_rate.*; pairs\.size: no such setting"):
        override(preset("sample").trial, {"training.lr": 1, "pairs.size": 1})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"data_input": "a"}, "^--data-input a: needs --data-target DIR"),
        ({"data_target": "a"}, "^--data-target a: needs --data-input DIR"),
        ({"data": "c", "data_input": "a", "data_target": "b"}, "^--data c: --data-input and --data-target name"),
        ({"data_input": "s3://key:secret@a", "data_target": "b"}, "^--data-input: contains credentials"),
    ],
)
def test_flags_must_go_together(flags: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SweepSettings("max_timestep", **flags)


def test_settings_name_both_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data\.input=here: expected data\.source=FOLDER too"):
        override(preset("sample").trial, {"data.input": "here"})
    with pytest.raises(InputError, match=r"^--data-input .*nowhere: no such folder"):
        open_source(str(tmp_path), str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="is also given as --data-target"):
        open_source(str(tmp_path), f"{tmp_path}/.")


def _settings(folders: tuple[Path, Path], tmp_path: Path, **changes: Any) -> SweepSettings:
    before, after = folders
    told = {"data_input": str(before), "data_target": str(after), "results": str(tmp_path / "results")}
    small = tuple((name, str(value)) for name, value in SMALL.items())
    return SweepSettings("sinsr_loss_ratios", perceptual="none", set=small, **told, **changes)


def test_dry_run_without_the_gpus_prints_the_plan_with_a_note(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    question = resolve(_settings(folders, tmp_path, gpus_per_worker=1.0))
    with pytest.raises(InputError, match=r"a trial needs 1 GPUs, this machine has 0"):
        make_plan(question, download=False)
    text = plan_text(make_plan(question, download=False, only_printed=True))
    assert "note       this machine cannot run it: --workers-per-trial 1 x --gpus-per-worker 1: a trial needs 1" in text
    assert "\ndata       12 pairs, 32 -> 128 px; " in text
    monkeypatch.setattr(resources, "usable_cpus", lambda: 0)  # as for a plan with more workers than CPUs
    assert "this machine has 0 CPUs" not in text
    assert "a trial needs 1 CPUs" in plan_text(make_plan(question, download=False, only_printed=True))


def test_resumed_run_finds_its_folders_from_elsewhere(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = tuple(folder.relative_to(tmp_path) for folder in folders)
    question = resolve(_settings(relative, tmp_path))  # type: ignore[arg-type]
    folder = create_run(question, ("val/psnr",), ["val/psnr"], {})
    folder.close()
    monkeypatch.chdir("/")
    again = reopen_run(folder.path)
    again.folder.close()
    assert (again.settings.data_input, again.settings.data_target) == tuple(map(str, folders))
    assert resolve(again.settings, again.started).trial.data.input == str(folders[0])


def test_prepare_takes_both_folders(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    before, after = map(str, folders)
    given = ["--data-input", before, "--data-target", after, "--store", str(tmp_path / "store")]
    assert main(["prepare", "--method", "pix2pix", *given, *small, "--dry-run"]) == 0
    assert "pairs-train-" in capsys.readouterr().out
