"""Shared fixtures: trials small enough to train in seconds, and their prepared data, made once per session."""

from __future__ import annotations

import os
import signal
import zlib

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; worker processes inherit it

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.small_rates import SPACE
from tests.helpers.loop import SHORT, VARIANTS, VariantOf
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.methods.build import method_class
from trainables.settings import TrialSettings, override
from trainables.settings.methods import METHODS
from trainables.settings.presets import preset

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
"""Makes the `sample` preset tiny. Dotted names, as for `override` and `--set`."""

SMALL_NETWORK: dict[str, Any] = {
    "network.channel_mult": (1,),
    "network.num_res_blocks": (1,),
    "network.attention_resolutions": (),
    "network.swin_embed_dim": 32,
    "network.mlp_ratio": 1.0,
}
"""A network with a tenth of the work, for trials that do not start from the shipped teacher."""


_ADVERSARY: dict[str, Any] = {"discriminator.ndf": 8, "discriminator.layers": 2}
_LATENT: dict[str, Any] = {
    "lora.rank": 2,
    "diffusion.prediction_type": "v_prediction",
    "diffusion.inference_steps": 2,
}
OF_METHOD: dict[str, dict[str, Any]] = {
    "resshift": SMALL_NETWORK,
    "pix2pix": {**SPACE.fixed},
    "latent_diffusion": _LATENT,
    "controlnet_diffusion": {**_LATENT, "controlnet.embedding_channels": (8, 8, 8)},
    "stablesr": {"stablesr.width": 8, "stablesr.layers": 1, "diffusion.inference_steps": 2},
    "one_step": {
        "lora.rank": 2,
        "one_step.distillation": 1.0,
        "one_step.score_rank": 2,
        "one_step.adversarial": 0.1,
        **_ADVERSARY,
    },
    "pixel_diffusion": {
        "pixel.channels": (8, 16),
        "pixel.layers": 1,
        "pixel.attention_levels": 1,
        "pixel.norm_groups": 4,
        "diffusion.prediction_type": "v_prediction",
        "diffusion.inference_steps": 2,
    },
    "stablesr_cfw": {"cfw.dense_blocks": 1, "cfw.growth": 4, "cfw.adversarial_start": 0, **_ADVERSARY},
    "ccsr": {"ccsr.steps": 6, "ccsr.adversarial_start": 0, **_ADVERSARY},
}
"""Makes a trial of a method small, with all its loss terms in every step. Others train as in the `sample` preset."""


SEED = 0
"""Of all random numbers that a test draws without a generator of its own."""


LONGEST = (
    "end_to_end/test_cluster_run.py",
    "end_to_end/test_groups.py",
    "sweeps/running/test_nodes.py",
    "end_to_end",
    "trainables/data/test_pipeline.py",
    "benchmarks",
    "faults",
    "trainables/training",
)
"""Folders and files that take minutes: with several processes they start first, so that none is left for the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        return next((k for k, name in enumerate(LONGEST) if item.path.is_relative_to(tests / name)), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Seeds PyTorch for every fixture, by the fixture's name: its draws do not depend on what ran before, and differ
    from those of other fixtures and of the test. NumPy has no common generator here; each is made with a seed."""
    torch.manual_seed(SEED + zlib.crc32(fixturedef.argname.encode()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Seeds PyTorch for the test itself, after its fixtures."""
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> None:
    """Ctrl-C interrupts, even if a background shell ignores it or another test has left Tune's handler."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    """The session's prepared stores. Read-only: tests that damage a store make their own."""
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
def prepared(tiny: TrialSettings, store_root: Path) -> Prepared:
    """All stores that any method reads for `tiny` and `small`: pairs, latents and the teacher's targets."""
    return prepare(tiny, store_root, {"target", "degraded", "latent", "latent_degraded", "noise", "taught"})


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with random weights that predicts the velocity; its latents have a quarter of the image's side."""
    from tests.helpers.bases import save_base  # diffusers and transformers take seconds to import

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def trial_of(tiny: TrialSettings, request: pytest.FixtureRequest) -> Callable[[str], TrialSettings]:
    """`trial_of(method)`: a small trial of the method on the data of `tiny`, with `base` if it needs one."""
    made: dict[str, TrialSettings] = {}

    def trial(method: str) -> TrialSettings:
        if method not in made:
            changes = {"method": method, **OF_METHOD.get(method, preset("sample").methods.get(method, {}))}
            if METHODS[method].latents == "kl":
                changes["base.weights"] = str(request.getfixturevalue("base"))
            if "first_stage" in METHODS[method].sections:
                changes["first_stage.weights"] = str(request.getfixturevalue("first_stage"))
            made[method] = override(tiny, changes)
        return made[method]

    return trial


@pytest.fixture(scope="session")
def variant_of(trial_of: Callable[[str], TrialSettings]) -> VariantOf:
    """`variant_of(variant, changes, ...)`: a trial of four steps."""

    def settings(variant: str, *changes: dict[str, Any]) -> TrialSettings:
        merged = {name: value for some in (SHORT, VARIANTS[variant], *changes) for name, value in some.items()}
        return override(trial_of(merged.pop("method")), merged)

    return settings


@pytest.fixture(scope="session")
def first_stage(
    trial_of: Callable[[str], TrialSettings],
    prepared_for: Callable[[TrialSettings], Prepared],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A `latent_diffusion` finished after one step."""
    settings = override(trial_of("latent_diffusion"), {"training.max_steps": 1, "training.warmup_steps": 0})
    return finish(settings, prepared_for(settings), tmp_path_factory.mktemp("first_stage"))


def finish(settings: TrialSettings, prepared: Prepared, folder: Path) -> Path:
    """Trains to the end and writes the last checkpoint into an existing folder."""
    from trainables.training.loop import World, train

    train(settings, prepared, ("val/psnr",), World(), lambda report, write: write(folder))
    return folder


@pytest.fixture(scope="session")
def prepared_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TrialSettings], Prepared]:
    """`prepared_for(settings)`: all stores that a trial reads, made once per session."""
    root = tmp_path_factory.mktemp("stores-of-methods")
    return lambda settings: prepare(settings, root, method_class(settings.method).columns(settings))
