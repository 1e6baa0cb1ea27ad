"""Networks that a loss downloads: found missing before a trial starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import OF_METHOD
from trainables.common.errors import InputError
from trainables.methods.shared.perceptual_loss import ensure_loss_networks
from trainables.settings import TrialSettings, override
from trainables.settings.presets import preset


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def trial(method: str, **changes: Any) -> TrialSettings:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return override(preset("sample").trial, {"method": method, **OF_METHOD.get(method, {}), **dotted})


@pytest.mark.parametrize(
    ("settings", "setting", "file"),
    [
        (trial("pix2pix", perceptual__network="lpips"), "perceptual.network=lpips", "alexnet-owt-7be5be79.pth"),
        (trial("one_step", perceptual__network="lpips_vgg"), "perceptual.network=lpips_vgg", "vgg16-397923af.pth"),
        (
            trial("resshift", resshift_loss__lpips=1.0, resshift_loss__network="lpips_vgg"),
            "resshift_loss.network=lpips_vgg",
            "vgg16-397923af.pth",
        ),
    ],
)
def test_missing_backbone_names_the_setting_and_the_file(
    settings: TrialSettings, setting: str, file: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        ensure_loss_networks(settings, allow_download=False)
    assert str(refused.value).startswith(f"{setting} is absent: its ")
    assert str(tmp_path / "hub" / "checkpoints" / file) in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        trial("pix2pix", perceptual__network="st_lpips"),
        trial("pix2pix", perceptual__network="lpips", perceptual__weight=0.0),
        trial("resshift", resshift_loss__network="lpips"),  # weight 0
        trial("sinsr", perceptual__network="lpips"),  # reads no such term
    ],
)
def test_terms_without_a_download_need_none(settings: TrialSettings) -> None:
    ensure_loss_networks(settings, allow_download=False)
