"""The benchmarks run and read the files of sweeps. Speed is not tested here."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import (
    data_loading,
    fresh_pairs,
    latent_step,
    many_trials,
    preparation,
    sinsr_step,
    ssim,
    sweep_cost,
    training_options,
)
from sweeps.planning.run_files import LOG, RUN_SETTINGS
from sweeps.recording.progress import Progress, log_to, logger
from sweeps.recording.tables import RunTables
from tests.helpers.paths import ROOT


def test_sinsr_step_compares_modes_at_requested_size(capsys: pytest.CaptureFixture[str]) -> None:
    sinsr_step.main(["--batch", "1", "--size", "32", "--repetitions", "2", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "batch 1, 32 px" in shown
    assert re.search(r"^online +\d", shown, re.M) and re.search(r"^prepared +\d", shown, re.M)
    assert "online / prepared: " in shown


def test_sinsr_step_keeps_attention_at_the_same_levels(tmp_path: Path) -> None:
    small, large = (sinsr_step.benchmark_settings("sample", 1, size, tmp_path).network for size in (64, 128))
    for network in (small, large):
        assert [network.image_size // r for r in network.attention_resolutions] == [2]


@pytest.mark.parametrize("through_tune", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_many_trials_run_through_the_recorder(tmp_path: Path, through_tune: bool) -> None:
    rows = many_trials.measure(tmp_path, trials=24, images=3, concurrent=4, through_tune=through_tune)
    assert re.search(r"^ +4 - 24 +\d", rows[1])
    trials = RunTables(tmp_path).load().leaderboard
    assert len(trials) == 24 and {row["status"] for row in trials} == {"finished", "stopped"}


def test_timeline_follows_trials_over_midnight(tmp_path: Path) -> None:
    lines = [
        "23:59:30  question   In which ratio?",
        "23:59:40  t000 starts 1:1:1",
        "23:59:41  t001 starts 1:1:2",
        "23:59:50  t000 step 12/24  psnr 20.73  1:1:1",
        "00:00:10  t000 finished at step 24",
        "00:00:10  t002 starts 1:0.1:10",
        "00:00:20  t001 stopped at step 12",
        "00:00:40  t002 failed at step 12: loss term 'inversion' is nan at step 13",
        "00:00:45  ",
        "00:00:45  done after 1 min",
    ]
    (tmp_path / LOG).write_text("\n".join(lines))
    assert sweep_cost.read_timeline(tmp_path / LOG) == sweep_cost.Timeline(75.0, 10.0, 70.0, 2)


def test_timeline_reads_the_log_of_a_sweep(tmp_path: Path) -> None:
    file = log_to(tmp_path / LOG)
    try:
        progress = Progress(3, 3, 24, 2, ())
        for id in ("t000", "t001", "t002"):
            progress.started(id, "1:1:1", given=True)
            progress.reported(id, 24, {})
            if id != "t000":
                progress.ended(id, "finished")
        progress.ended("t000", "failed", "the worker process died without an error message")
    finally:
        logger.removeHandler(file)
        file.close()
    timeline = sweep_cost.read_timeline(tmp_path / LOG)
    assert timeline.concurrent == 2 and math.isfinite(timeline.first_trial)
    assert timeline.last_trial == timeline.end


def test_time_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / RUN_SETTINGS).write_text("trials: 2\n")
    (tmp_path / LOG).write_text(
        "12:00:00  plan\n12:00:10  t000 starts a\n12:00:10  t001 starts b\n"
        "12:00:50  t001 stopped at step 10\n12:01:00  t000 finished at step 30\n12:01:05  done\n"
    )
    tables = RunTables(tmp_path)
    tables.upsert_trial({"id": "bicubic", "kind": "control", "status": "control"})
    for id, status, steps, wall, busy in (("t000", "finished", 30, 50.0, 45.0), ("t001", "stopped", 10, 40.0, 30.0)):
        tables.upsert_trial({"id": id, "status": status, "steps": steps, "wall_seconds": wall, "busy_seconds": busy})
    tables.flush(force=True)
    assert sweep_cost.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "2: 1 finished, 1 stopped" in shown and "40 in all" in shown
    assert f"{75 / (2 * 50):.1%} of 2 x 50 s" in shown
    assert f"{75 / 90:.1%} of 90 s" in shown


def test_folder_without_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep_cost.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_memory_counts_processes_in_other_sessions(capsys: pytest.CaptureFixture[str]) -> None:
    daemon = "import time; held = bytearray(range(256)) * 800_000; time.sleep(3)"
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {daemon!r}], start_new_session=True)\n"
        "time.sleep(4); sys.exit(3)"
    )
    assert sweep_cost.main(["--every", "0.2", "--measure", "--", sys.executable, "-c", parent]) == 3
    peak = re.search(r"peak memory +([\d.]+) GB", capsys.readouterr().out)
    assert peak is not None and 0.2 <= float(peak[1]) < 0.4


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on an idle machine; the documented pattern takes four times as long
def test_launch_overhead_runs_our_pattern() -> None:
    options = ["--trials", "2", "--train", "nothing", "--launchers", "ours"]
    command = [sys.executable, "-m", "benchmarks.launch_overhead", *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^ours +\d", ran.stdout, re.M)


def test_latent_step_names_terms_and_compares_modes(capsys: pytest.CaptureFixture[str]) -> None:
    latent_step.main(["--sizes", "32", "--batch", "1", "--turns", "1", "--steps", "1", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "base shipped: UNet of 2." in shown and "batch 1" in shown
    numbers = r" +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ to [\d.]+ +[\d.]+$"
    assert re.search(rf"^  32 px, reconstruction{numbers}", shown, re.M)
    assert re.search(rf"^  32 px, reconstruction \+ perceptual{numbers}", shown, re.M)


def test_latent_step_compares_latents(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--sizes", "32", "--batch", "1", "--turns", "1", "--device", "cpu"]
    latent_step.main([*size, "--method", "one_step", "--l2", "latents", "--every", "4", "--steps", "4"])
    terms = re.findall(r"^  32 px, (.+?) +\d", capsys.readouterr().out, re.M)
    assert terms == ["latent_l2", "perceptual + latent_l2"]


def test_latent_step_makes_base_of_official_shape(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With narrower layers: only the widths differ from the official ones here."""
    narrow = {"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 4}
    monkeypatch.setattr(latent_step, "_SD_UNET", latent_step._SD_UNET | narrow | {"attention_head_dim": 4})
    monkeypatch.setattr(latent_step, "_SD_VAE", latent_step._SD_VAE | narrow)
    smallest = ["--batch", "1", "--turns", "1", "--steps", "1", "--device", "cpu"]
    latent_step.main(["--official-size", "--terms", "latent", "--sizes", "64", *smallest])
    shown = capsys.readouterr().out
    assert "of Stable Diffusion 1's size" in shown and "perceptual" not in shown
    assert re.search(r"^  64 px, reconstruction( +[\d.]+){3}", shown, re.M)


@pytest.mark.parametrize("method", latent_step.METHODS)
def test_latent_step_trains_equally_in_both_modes(method: str, tmp_path: Path) -> None:
    settings = latent_step.benchmark_settings(method, "shipped", 2, 32, perceptual=True)
    trainers = latent_step.make_trainers(settings, tmp_path, torch.device("cpu"))
    for trainer in trainers.values():
        trainer.train_until(1)
    online, prepared = (trainers[mode].log.means() for mode in ("online", "prepared"))
    assert len(online) == 4  # two terms, raw and weighted
    assert online == pytest.approx(prepared, rel=2e-3)  # latents are stored with 16 bits


@pytest.mark.slow  # two processes of their own
def test_training_options_measures_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--options", "gradient_checkpointing", "channels_last"]  # the compiler would take a minute
    smallest = ["--batch", "1", "--memory-size", "64", "--turns", "1", "--steps", "1", "--device", "cpu"]
    training_options.main(["--methods", "pix2pix", *options, *smallest])
    shown = capsys.readouterr().out
    assert "pix2pix, batch 1, 64 px" in shown
    assert "gradient_checkpointing" not in shown  # this method ignores it
    assert re.search(r"^default +[\d.]+ +1\.00 +[\d.]+ +1\.00 +[1-9]\d* +1\.00$", shown, re.M)
    assert re.search(r"^channels_last +([\d.]+ +){4}[1-9]\d* +[\d.]+$", shown, re.M)


def test_training_options_names_failed_options() -> None:
    taken = sinsr_step.Taken(0.2, 0.1)
    shown = training_options.table(
        ("default", "compile"), {"default": taken}, {"default": 2_000_000}, {"compile": "No working C++ compiler"}
    )
    assert re.search(r"^default +100\.0 +1\.00 +200\.0 +1\.00 +2 +1\.00$", shown, re.M)
    assert re.search(r"^compile( +-){6}$", shown, re.M)
    assert "compile fails: No working C++ compiler" in shown


def test_ssim_compares_equal_values(capsys: pytest.CaptureFixture[str]) -> None:
    ssim.main(["--sizes", "16", "--batch", "2", "--turns", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [["16", "3"], ["16", "1"]]
    assert all(float(line[-1]) < 1e-6 for line in lines[1:])


@pytest.mark.slow  # four processes of their own
def test_data_loading_compares_readers(capsys: pytest.CaptureFixture[str]) -> None:
    readers = "--sizes 64 --batches 2 --steps 5 --turns 1 --online 2 --stored 0.02"
    data_loading.main([*readers.split(), "--memory", "0.01"])
    shown = capsys.readouterr().out
    assert re.search(r"^  64 px, batch  2( +[\d.]+){3} +[\d.]+ to [\d.]+( +[\d.]+){3}$", shown, re.M)
    assert re.search(r"^two / one: [\d.]+$", shown, re.M)


@pytest.mark.slow  # a run of the command line
def test_preparation_measures_cores_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    preparation.main(["--images", "200", "--method", "pix2pix"])
    shown = capsys.readouterr().out
    assert re.search(r"^ +200 +\d+ +\d+ +[\d.]+ +[\d.]+ of \d+ +\d+$", shown, re.M)
    assert re.search(r"^largest peak / smallest: 1\.00$", shown, re.M)


def test_fresh_pairs_compares_modes(capsys: pytest.CaptureFixture[str]) -> None:
    fresh_pairs.main(["--methods", "pix2pix", "--size", "64", "--batch", "1", "--turns", "1", "--steps", "1"])
    shown = capsys.readouterr().out
    assert re.search(r"^pix2pix +[\d.]+ +[\d.]+ +[\d.]+ +[+-][\d.]+% +\S+ to \S+ +[+-][\d.]+%$", shown, re.M)


@pytest.mark.slow  # processes of Ray
def test_fresh_pairs_measures_trials_beside_a_preparation(capsys: pytest.CaptureFixture[str]) -> None:
    fresh_pairs.main(["--beside", "2", "--methods", "pix2pix", "--pairs", "8", "--max-steps", "4", "--turns", "1"])
    shown = capsys.readouterr().out
    assert re.search(r"^pix2pix +[\d.]+ +[\d.]+ +[+-][\d.]+% +\S+ to \S+ +[\d.]+$", shown, re.M)
