"""Later variants of the training pairs are prepared by real processes of Ray, beside what the sweep does meanwhile."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from search_spaces.space import Int, Point, SearchSpace
from sweeps.planning.own_spaces import register_space
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from sweeps.running.preparation import prepare_stores, preparing_beside
from tests.helpers.sweep import SPACE, TINY
from trainables.data import ray_pipeline
from trainables.data.prepare import make_stores
from trainables.data.ray_pipeline import connected_for_preparation
from trainables.data.stores.shard_format import MANIFEST
from trainables.data.stores.store import Store

pytestmark = pytest.mark.timeout(300)
Found = TypeVar("Found")
WITHIN = 120.0  # seconds; on a busy machine these processes get almost no time
ON_IMAGES = SearchSpace(
    name="pix2pix_width",
    question="How wide must the generator be?",
    method="pix2pix",  # reads pairs alone
    parameters={"pix2pix.ngf": Int(4, 8)},
    points=(Point("4", {"pix2pix.ngf": 4}),),
    objective="val/psnr",
    controls=("bicubic",),
)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with connected_for_preparation(cpus=1):
        yield


def planned(space: SearchSpace | str, store: Path, variants: int) -> Plan:
    pairs = {name: value for name, value in TINY.items() if not name.startswith("sinsr")}
    given = tuple((name, str(value)) for name, value in (pairs | {"pairs.variants": variants}).items())
    places = {"results": str(store.parent / "results"), "store": str(store)}
    return make_plan(
        resolve(SweepSettings(register_space(space), set=given, trials=1, confirm=0, perceptual="none", **places))
    )


def background() -> list[psutil.Process]:
    """The processes that prepare."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if each.is_running() and each.name().startswith("ray::_Background")]


def until(found: Callable[[], Found]) -> Found:
    """What `found` returns as soon as it is true."""
    deadline = time.monotonic() + WITHIN
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


@pytest.mark.slow  # two starts of a process of Ray
def test_later_variants_are_made_beside_and_equal_those_made_before(local_ray: None, tmp_path: Path) -> None:
    """Also if the process is killed once. A sweep that is resumed finds them."""
    plan, before = (planned(ON_IMAGES, tmp_path / name, 3) for name in ("store", "before"))
    (trial,) = before.question.every_method
    make_stores(trial, before.stages)
    reasons: queue.Queue[str] = queue.Queue()
    held = prepare_stores(plan, 1)
    later = plan.beside
    assert [stage.label for stage in later] == ["train pairs #1", "train pairs #2"]
    assert all(stage.exists == (stage not in later) for stage in plan.stages)
    with preparing_beside(plan, 1, held, reasons.put):
        until(background)[0].kill()
        until(lambda: len(held) == len(plan.stages))
        assert [each.nice() for each in background()] == [19]
    until(lambda: not background())  # it ends with the body
    for made, expected in zip(plan.stages, before.stages, strict=True):
        assert bytes(made.folder.read(MANIFEST)) == bytes(expected.folder.read(MANIFEST))
    resumed: list[Store] = []
    with preparing_beside(plan, 1, resumed, reasons.put):
        assert len(resumed) == len(later) and not background()
    assert reasons.empty()


@pytest.mark.slow
def test_variant_that_cannot_be_made_stops_the_sweep(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that died as often as it may, and an error."""
    plan, reasons = planned(ON_IMAGES, tmp_path / "store", 2), queue.Queue[str]()
    held = prepare_stores(plan, 1)
    monkeypatch.setattr(ray_pipeline, "_RESTARTS", 0)
    with preparing_beside(plan, 1, held, reasons.put):
        until(background)[0].kill()
        killed = time.monotonic()
        reason = reasons.get(timeout=WITHIN)
        assert time.monotonic() - killed < 30
    assert reason == (
        "variant 1 of the training pairs cannot be prepared: its process died several times without an error message; "
        "it was killed, or there was too little memory"
    )
    plan.beside[0].folder.local.write_text("not a folder")
    with preparing_beside(plan, 1, held, reasons.put):
        reason = reasons.get(timeout=WITHIN)
    assert reason.startswith("variant 1 of the training pairs cannot be prepared: ")


def test_preparation_beside_trials_on_gpus_runs_no_network(tmp_path: Path) -> None:
    """The latents of all variants are made before the trials; pairs alone need no GPU."""
    for space, beside in ((SPACE, []), (ON_IMAGES, ["train pairs #1"])):
        plan = planned(space, tmp_path / "store", 2)
        settings = replace(plan.question.settings, gpus_per_worker=1.0)
        plan = replace(plan, question=replace(plan.question, settings=settings))
        assert [stage.label for stage in plan.beside] == beside
