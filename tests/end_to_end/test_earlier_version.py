"""A run that version 0.1 made: it is read and restores; its training does not go on with today's data."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

import sweeps
from sweeps.command_line import main
from tests.faults.runs import tree
from tests.helpers.paths import EXPECTED
from trainables.restore import main as restore


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "beat_pix2pix" / "20261128-021813"
    with zipfile.ZipFile(EXPECTED / "run_of_0.1.zip") as stored:
        stored.extractall(folder)
    return folder


def test_a_resume_is_refused_in_one_line_that_speaks_of_the_version(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(run)
    assert main(["--resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"--resume {run}: the photographs, weights or code for train latents, train pairs, " in said
    assert "the run does not say which version of restoration-sweeps made it, perhaps an earlier one" in said
    assert {name: content for name, content in tree(run).items() if name != ".lock"} == before


def test_its_tables_are_read_and_answered(run: Path) -> None:
    opened = sweeps.open_run(run)
    values = opened.leaderboard.set_index("id")["val/psnr"]
    written = (run / "leaderboard.csv").read_text(encoding="utf-8")
    assert list(values.index) == ["bicubic", "autoencoder", "t000", "t001"]
    assert all(str(value) in written for value in values)
    assert len(opened.history) == 8 and len(opened.per_image) == 8
    answer = opened.answer
    assert (answer.winner_ids, answer.unconfirmed) == (("t000",), "there was no confirmation")
    assert answer.sentences[0].startswith(
        "Pix2Pix leads the search; the next, t001 (Pix2Pix, perceptual), is behind by"
    )


def test_its_winner_restores(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "small.png"
    Image.new("RGB", (48, 32), (90, 120, 60)).save(picture)
    assert restore([str(run / "best"), str(picture), str(tmp_path / "restored")]) == 0
    assert "restored 1 of 1 pictures" in capsys.readouterr().out
    (restored,) = (tmp_path / "restored").iterdir()
    with Image.open(restored) as image:
        assert image.size == (4 * 48, 4 * 32)
