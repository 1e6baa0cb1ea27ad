"""Several degradations of the training pairs: one per epoch, prepared before a trial or while it trains."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.preparation import TAUGHT, made_by
from trainables.common.errors import InputError
from trainables.data.batches import TrainingBatches
from trainables.data.prepare import make_stores, prepare
from trainables.data.prepared import Prepared, open_stores
from trainables.data.shards import Made, ShardMaker, Task, run_here
from trainables.data.stages.needed import needed_stages
from trainables.data.stages.stage import Stage
from trainables.settings import TrialSettings, override

CPU = torch.device("cpu")
COLUMNS = frozenset({"latent", "degraded"})
PAIRS, BATCH, VARIANTS = 3, 2, 3
STEPS = 10  # two passes over all variants, and a third one begins; batches cross the ends of epochs


@pytest.fixture(scope="module")
def settings(tiny: TrialSettings) -> TrialSettings:
    pairs = {"pairs.train_pairs": PAIRS, "pairs.variants": VARIANTS, "pairs.validation_pairs": 1}
    training = {"training.batch_size": BATCH, "training.max_steps": STEPS}
    return override(tiny, {**pairs, **training, "method": "resshift"})


@pytest.fixture(scope="module")
def root(settings: TrialSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stores of all variants, prepared before."""
    root = tmp_path_factory.mktemp("stores")
    prepare(settings, root, COLUMNS)
    return root


def only_first(root: Path, settings: TrialSettings, to: Path) -> list[Stage]:
    """Copies the stores that a trial needs at its start; returns all stages."""
    stages = needed_stages(settings, to, COLUMNS)
    for stage in stages:
        if not stage.variant:
            shutil.copytree(root / stage.folder.name, stage.folder.local)
    return stages


def batches_of(prepared: Prepared, settings: TrialSettings) -> list[dict[str, torch.Tensor]]:
    read = TrainingBatches(prepared, settings, COLUMNS, CPU)
    return [read(step) for step in range(settings.training.max_steps)]


def test_an_epoch_reads_one_variant(settings: TrialSettings, root: Path) -> None:
    """Epoch e reads variant e mod K of every pair, once. Trials with other training seeds read the same pairs in every
    epoch, in another order, so that a comparison is paired.
    """
    prepared = prepare(settings, root, COLUMNS)
    stored = [prepared.train("degraded", variant)["degraded"] / np.float32(127.5) - 1 for variant in range(VARIANTS)]
    orders = []
    for seed in (0, 1):
        batches = batches_of(prepared, override(settings, {"training.seed": seed}))
        seen = np.concatenate([batch["degraded"].numpy() for batch in batches])
        order = []
        for place in range(2 * VARIANTS * PAIRS):
            of_epoch = stored[place // PAIRS % VARIANTS]
            # A level is 1 / 127.5.
            order += [row for row in range(PAIRS) if np.allclose(of_epoch[row], seen[place], atol=1e-3)]
        epochs = np.array(order).reshape(2 * VARIANTS, PAIRS)
        assert (np.sort(epochs) == np.arange(PAIRS)).all()
        orders.append(order)
    assert orders[0] != orders[1]


def test_every_pass_over_the_variants_uses_another_draw(tiny: TrialSettings, tmp_path: Path) -> None:
    """Two passes over two variants use both draws of both; all of them are different noises."""
    two = {"pairs.train_pairs": 1, "pairs.validation_pairs": 1, "pairs.variants": 2, "sinsr.draws": 2}
    settings = override(tiny, {**two, "training.batch_size": 1, "training.max_steps": 4})
    prepared = prepare(settings, tmp_path, TAUGHT)
    read = TrainingBatches(prepared, settings, {"noise"}, CPU)
    noise = [read(step)["noise"][0].numpy() for step in range(4)]
    stored = [prepared.train("noise", variant)["noise"][0] for variant in range(2)]
    for variant in range(2):
        assert {draw.tobytes() for draw in stored[variant]} == {
            noise[step].astype(np.float16).tobytes() for step in (variant, variant + 2)
        }
    assert len({each.tobytes() for each in noise}) == 4


def test_more_variants_add_stores_and_change_none(settings: TrialSettings, root: Path) -> None:
    """So the first one is that of settings without variants."""

    def names(variants: int, flips: str = "none") -> list[str]:
        own = override(settings, {"pairs.variants": variants, "pairs.flips": flips})
        return [stage.folder.name for stage in needed_stages(own, root, COLUMNS)]

    assert "variant" not in needed_stages(settings, root, COLUMNS)[0].key
    assert names(1) == names(3)[:4] and names(2) == names(3)[:6] and len(set(names(3))) == 8
    assert names(3, "mirrored")[:4] == names(1) and not set(names(3, "mirrored")[4:]) & set(names(3))
    assert made_by(override(settings, {"pairs.variants": 2}), root, COLUMNS) == {}


def test_variants_prepared_beside_training_give_equal_batches(
    settings: TrialSettings, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the bit. A trial waits for a late variant and says so; what an interrupted preparation left is used."""
    expected = batches_of(prepare(settings, root, COLUMNS), settings)
    stages = only_first(root, settings, tmp_path)
    prepared = open_stores(settings, stages)
    assert prepared.is_prepared(0) and not prepared.is_prepared(1)
    (half,) = (stage for stage in stages if stage.label == "train pairs #1")
    half.folder.local.mkdir()
    shutil.copy(root / half.folder.name / "shard-00000.arrow", half.folder.local)
    kept: list[str] = []

    def late(maker: ShardMaker, tasks: Sequence[Task]) -> Iterator[Made]:
        time.sleep(0.3)  # the trial is faster
        for made in run_here(maker, tasks):
            kept.extend(made.kept)
            yield made

    beside = threading.Thread(target=make_stores, args=(settings, stages), kwargs={"run": late})
    beside.start()
    try:
        found = batches_of(prepared, settings)
    finally:
        beside.join()
    assert kept == ["pairs"]
    for one, two in zip(expected, found, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    said = capfd.readouterr().out
    for step, variant in ((1, 1), (3, 2)):
        assert f"step {step}: waiting for variant {variant} of the training pairs, being prepared\n" in said
    assert said.count("waited ") == 2


def test_training_that_ends_early_needs_no_later_variant(settings: TrialSettings, root: Path, tmp_path: Path) -> None:
    """Nor does the read-ahead wait for one."""
    stages = only_first(root, settings, tmp_path)
    short = override(settings, {"training.max_steps": 1})
    assert len(batches_of(open_stores(short, stages), short)) == 1


def test_variant_with_other_pairs_is_refused(settings: TrialSettings, root: Path, tmp_path: Path) -> None:
    stages = only_first(root, settings, tmp_path)
    few = override(settings, {"pairs.train_pairs": PAIRS - 1})
    others = {stage.label: stage for stage in needed_stages(few, tmp_path, COLUMNS)}
    make_stores(few, [others[label] for label in ("train pairs #1", "train latents #1")])
    for stage in stages:
        if stage.variant == 1:
            shutil.copytree(others[stage.label].folder.local, stage.folder.local)
    with pytest.raises(InputError, match="has 2 of 3 training pairs, because photographs could not be read"):
        batches_of(open_stores(settings, stages), settings)
