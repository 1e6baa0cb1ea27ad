"""What the tests share: trials small enough to train in seconds, and their prepared data, made once a session."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; worker processes inherit it

from pathlib import Path
from typing import Any

import pytest
import torch

from trainables.data.prepare import Prepared, prepare
from trainables.presets import preset
from trainables.settings import TrialSettings, override

torch.set_num_threads(1)

TINY: dict[str, Any] = {
    "pairs.train_pairs": 8,
    "pairs.validation_pairs": 3,
    "pairs.validation_size": 64,
    "training.max_steps": 6,
    "training.batch_size": 4,
    "training.reports": 2,
    "training.warmup_steps": 2,
    "training.log_every": 2,
    "training.validation_batch": 2,
    "sinsr.draws": 2,
}
"""Makes the `sample` preset tiny. Dotted names, as `override` and `--set` take them."""

SMALL_NETWORK: dict[str, Any] = {
    "network.channel_mult": (1,),
    "network.num_res_blocks": (1,),
    "network.attention_resolutions": (),
    "network.swin_embed_dim": 32,
    "network.mlp_ratio": 1.0,
}
"""A network of a tenth of the work, for what does not start from the shipped teacher."""


@pytest.fixture(scope="session")
def tiny() -> TrialSettings:
    """A SinSR trial: the `sample` preset with 8 training pairs, 3 validation pairs and 6 steps."""
    return override(preset("sample").trial, TINY)


@pytest.fixture(scope="session")
def small(tiny: TrialSettings) -> TrialSettings:
    """A ResShift trial on the same data, with a network that trains a step in a fraction of a second."""
    return override(tiny, {"method": "resshift", **SMALL_NETWORK})


@pytest.fixture(scope="session")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the session's prepared stores lie. To be read only: tests that damage a store make their own."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def prepared(tiny: TrialSettings, store_root: Path) -> Prepared:
    """All that any method reads of `tiny` and `small`: pairs, latents and the teacher's targets."""
    return prepare(tiny, store_root, {"target", "degraded", "latent", "latent_degraded", "prior", "taught"})
