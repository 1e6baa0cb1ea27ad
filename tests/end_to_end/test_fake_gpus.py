"""A sweep that needs more GPUs than are declared. Those in `test_groups` and `test_bucket_results` have enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.sweep import SPACE, run_sweep
from trainables.common.devices import FAKE


@pytest.mark.slow
def test_sweep_that_needs_more_than_the_declared_gpus_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FAKE, "1")
    ended = run_sweep(
        *("--space", SPACE, "--workers-per-trial", "2", "--gpus-per-worker", "1", "--results", str(tmp_path))
    )
    assert ended.returncode == 2
    assert "a trial needs 2 GPUs, this machine has 1" in ended.stderr
