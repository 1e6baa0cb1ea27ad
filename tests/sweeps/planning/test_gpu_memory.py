"""What a plan says about the memory of a worker's GPU, on a machine that declares a GPU and has none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeps.command_line import main
from sweeps.planning.resources import TRAINING_BYTES_PER_PARAMETER, Networks, gpu_notes, gpu_text
from trainables.common.devices import FAKE
from trainables.settings import TrainingSettings

UNITS = {"MB": 1e6, "GB": 1e9}


@pytest.mark.parametrize("gpus", ["0", "1"])
def test_plan_estimates_the_memory_of_a_workers_gpu(
    gpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FAKE, "1")
    places = ("--results", str(tmp_path / "results"), "--store", str(tmp_path / "store"))
    flags = ("--space", "sinsr_loss_ratios", "--perceptual", "none", "--gpus-per-worker", gpus, "--dry-run", *places)
    assert main(list(flags)) == 0
    plan = capsys.readouterr().out
    found = re.search(r"on the GPU of a worker about ([\d.]+) ([MG]B) at batch 4 in fp32", plan)
    assert bool(found) == (gpus == "1")
    if found:
        trained = re.search(r"([\d.]+) M parameters train", plan)
        assert trained
        # More than weights, gradients, averages and moments of Adam; less than the GPUs that the presets are for.
        least = float(trained[1]) * 1e6 * (4 + TRAINING_BYTES_PER_PARAMETER)
        assert least < float(found[1]) * UNITS[found[2]] < 24e9
        assert "of its GPU's memory" not in plan  # a declared GPU has no memory to compare with


def test_methods_are_named_if_there_are_several() -> None:
    one, other = Networks(1, 1, 4, 3_000_000_000), Networks(1, 1, 4, 500_000_000)
    settings = TrainingSettings(batch_size=2, precision="bf16")
    assert "about sinsr 3 GB, pix2pix 500 MB at batch 2 in bf16" in gpu_text({"sinsr": one, "pix2pix": other}, settings)
    assert gpu_text({"sinsr": Networks(1, 1, 4)}, settings) == ""  # PyTorch could not tell
    assert gpu_notes({"sinsr": one}, share=0) == ()
