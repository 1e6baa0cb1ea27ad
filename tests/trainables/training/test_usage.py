"""Speed and memory of a trial."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers.loop import Recorder
from trainables.data.prepared import Prepared
from trainables.settings import TrialSettings
from trainables.training.loop import World, train
from trainables.training.usage import Usage


def test_peak_is_that_since_the_last_report() -> None:
    usage = Usage(torch.device("cpu"))
    before = usage.take(1, 1.0)["memory/peak_gb"]
    np.ones(50_000_000)  # 0.4 GB, freed at once
    high = usage.take(32, 0.5)
    after = usage.take(1, 1.0)["memory/peak_gb"]
    assert high["speed/images_per_second"] == 64.0
    assert high["memory/peak_gb"] - before == pytest.approx(0.4, abs=0.05)
    assert after == pytest.approx(before, abs=0.05)


def test_reports_say_how_the_device_is_used(small: TrialSettings, prepared: Prepared) -> None:
    recorder = Recorder()
    train(small, prepared, ("val/psnr",), World(), recorder)
    for report in recorder.reports:
        per_step = report.metrics["train/step_seconds"]
        assert report.metrics["speed/images_per_second"] == pytest.approx(small.training.batch_size / per_step)
        assert 0.05 < report.metrics["memory/peak_gb"] < 20
        assert "gpu/utilisation" not in report.metrics
