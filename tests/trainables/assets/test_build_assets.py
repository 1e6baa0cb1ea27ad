"""How the shipped networks are trained: the photographs, the crops of them, and trainings that resume."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainables.assets.build_photographs import LONGEST_SIDE, listed, reduce
from trainables.assets.crops import Crops, CropSettings
from trainables.assets.held_out import held_out_crops, held_out_photographs, mean_psnr
from trainables.assets.linear_start import block_components, start_linear
from trainables.assets.resumable import DECAY_FROM, Resumable, learning_rate_factor
from trainables.assets.stable_diffusion import new_autoencoder
from trainables.assets.winner import measure_winner
from trainables.common.errors import InputError
from trainables.images.sources.sample import SAMPLE_FILES, SAMPLE_NAMES
from trainables.networks.autoencoder import build_vq_f4
from trainables.pretrained.shipped import ASSETS

CREATIVE_COMMONS = ("CC0", "CC-BY-3", "CC-BY-4", "CC-BY-SA-")
FREE = (*CREATIVE_COMMONS, "BSD-2-clause", "GFDL", "GPL-2", "LGPL-2.1", "LGPL-3", "MIT", "public domain")
SHIPPED = Path(__file__).parents[3] / "trainables" / "images" / "sources" / "sample_photographs"


def shipped() -> list[dict[str, str]]:
    """The rows of the table of the shipped photographs."""
    with (SHIPPED / "photographs.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_list_holds_enough_photographs_under_free_licences() -> None:
    rows = listed()
    assert sum(row.kind == "photograph" for row in rows) >= 100
    assert sum(row.kind == "cut-out" for row in rows) >= 100
    assert len({row.cached_name for row in rows}) == len(rows)
    assert len({(row.package, row.version) for row in rows}) == len({row.package for row in rows})
    assert all(row.version for row in rows)
    assert {row.kind for row in rows} == {"photograph", "cut-out"}
    assert all(row.author for row in rows)
    assert [row.licence for row in rows if not row.licence.startswith(FREE)] == []


def test_no_photograph_of_the_sample_is_in_the_list() -> None:
    names = {Path(row.path).stem.lower() for row in listed()}
    assert names.isdisjoint({*SAMPLE_NAMES, "flower", "china", "grace_hopper"})


def test_no_shipped_photograph_is_in_the_list() -> None:
    in_list = {(row.package, row.path) for row in listed()}
    assert in_list.isdisjoint((row["package"], row["path"]) for row in shipped())


def test_table_of_shipped_photographs_is_complete() -> None:
    rows = shipped()
    names = [row["file"] for row in rows]
    assert sorted(names) == sorted(file.name for file in SHIPPED.glob("*.jpg"))
    assert len({(row["package"], row["path"]) for row in rows}) == len(rows)
    assert [row["licence"] for row in rows if not row["licence"].startswith(CREATIVE_COMMONS)] == []
    assert [row["file"] for row in rows if not all(row.values())] == []
    assert {row["file"] for row in rows} == {file for file in SAMPLE_FILES if "/" not in file}
    assert min(Counter(SAMPLE_FILES.values()).values()) >= 5


def test_shipped_photographs_are_small_rgb_images() -> None:
    sizes = []
    for row in shipped():
        with Image.open(SHIPPED / row["file"]) as image:
            assert image.mode == "RGB"
            sizes.append(max(image.size))
    assert min(sizes) >= 480
    assert max(sizes) <= 512
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1.3e6


def test_held_out_photographs_are_those_of_the_sample() -> None:
    assert set(held_out_photographs()) == set(SAMPLE_NAMES)
    assert held_out_crops(2).shape == (2 * len(held_out_photographs()), 3, 64, 64)


@pytest.mark.parametrize(("kind", "mode"), [("photograph", "RGB"), ("cut-out", "RGBA")])
def test_reduction_shrinks_at_least_by_its_factor_and_to_the_longest_side(kind: str, mode: str) -> None:
    assert max(reduce(Image.new(mode, (8000, 4000)), kind).size) == LONGEST_SIDE[kind]
    small = reduce(Image.new(mode, (300, 240)), kind)
    assert small.mode == mode
    assert max(small.size) <= 200


@pytest.fixture
def crops() -> Crops:
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)) for _ in range(2)]
    cut_out = Image.fromarray(rng.integers(0, 256, (50, 40, 4), np.uint8))
    return Crops(photographs, [cut_out], CropSettings(cut_out=0.7))


@pytest.mark.parametrize(("height", "width"), [(48, 48), (32, 64), (64, 32), (90, 120)])
def test_crops_have_their_size_and_depend_on_the_generator_alone(crops: Crops, height: int, width: int) -> None:
    batch = crops.batch(6, height, width, np.random.default_rng(3))
    assert batch.shape == (6, 3, height, width)
    assert batch.dtype == torch.float32
    assert -1 <= batch.min() < batch.max() <= 1
    assert torch.equal(batch, crops.batch(6, height, width, np.random.default_rng(3)))


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_an_autoencoder_starts_as_a_linear_transform_that_passes_colours(kind: str) -> None:
    """On crops of the sample, from the components of other crops. Random weights reach about 13 dB."""
    torch.manual_seed(0)
    model = (
        build_vq_f4(16, (1, 2, 6), 1, codebook_size=8, latent_channels=8, norm_groups=1)
        if kind == "vq"
        else new_autoencoder((16, 32, 96))
    )
    images = held_out_crops(4)
    start_linear(model, block_components(images[8:], 8))
    with torch.no_grad():
        latents = model.encode(images[:8])
        mean = latents.latents if kind == "vq" else latents.latent_dist.mode()
        restored = model.decoder(model.post_quant_conv(mean))
        darker = model.encode(images[:8] * 0.5)
        half = darker.latents if kind == "vq" else darker.latent_dist.mode()
    assert mean_psnr(restored, images[:8]) > 16.5
    assert (half - mean * 0.5).square().mean() < 0.01 * mean.square().mean()  # linear


def test_learning_rate_is_constant_until_it_falls() -> None:
    rates = [learning_rate_factor(step, 10_000) for step in (0, 99, 5_999, 8_000, 9_999)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.505, 0.01], abs=1e-3)


def test_a_resumed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, steps: int, stop: int | None = None) -> torch.Tensor:
        folder.mkdir(exist_ok=True)
        model = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        optimiser = torch.optim.AdamW(model.parameters(), 0.1)

        def step(number: int) -> Mapping[str, float]:
            if number == stop:
                raise KeyboardInterrupt
            loss = model(torch.full((1, 2), float(number % 3))).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return {"loss": loss.item()}

        parts = {"model": model, "optimiser": optimiser}
        training = Resumable(folder, "tiny", steps, parts, checkpoint_seconds=0, log_every=4, measure_every=8)
        training.run(step, lambda number: {"weight": float(model.weight.detach().sum())}, lambda line: None)
        return model.weight.detach().clone()

    whole = run(tmp_path / "whole", 12)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 12, stop=5)
    assert torch.equal(run(tmp_path / "parts", 12), whole)
    curve = [json.loads(line) for line in (tmp_path / "parts" / "tiny.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve if "measured" in row] == [8, 12]
    stable = torch.load(tmp_path / "parts" / "tiny.stable.pt", weights_only=True)
    assert stable["step"] == int(np.ceil(DECAY_FROM * 12))


def test_winner_is_measured_where_the_photographs_are_degraded_alike() -> None:
    with pytest.raises(InputError, match=r"pairs\.scale=1; expected a trial of the preset sample, with 4"):
        measure_winner(ASSETS / "latent_diffusion_sample")
