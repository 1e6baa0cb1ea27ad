"""GPUs that are declared and do not exist."""

from __future__ import annotations

import pytest
import torch

from trainables.common.devices import FAKE, device_for, gpu_count, own_device
from trainables.common.errors import InputError


def test_declared_gpus_count_and_compute_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAKE, "2")
    assert gpu_count() == 2
    assert device_for(0.5) == device_for(0) == own_device() == "cpu"


def test_real_gpus_are_used_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FAKE, raising=False)
    assert gpu_count() == torch.cuda.device_count()
    assert (device_for(0.5), device_for(0)) == ("cuda", "cpu")
    assert own_device() == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("text", ["-1", "0.5", "many"])
def test_other_values_are_refused_by_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FAKE, text)
    with pytest.raises(InputError, match=f"{FAKE}={text}: expected a whole number"):
        gpu_count()
