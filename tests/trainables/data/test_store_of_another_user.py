"""A finished store is usable by everybody who may read it; only making one needs to write."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.planning.plan import make_plan
from sweeps.planning.plan_text import plan_text
from sweeps.planning.question import resolve
from sweeps.planning.settings import SweepSettings
from tests.conftest import TINY
from trainables.common.errors import InputError
from trainables.common.locks import locked, take
from trainables.data.prepare import prepare
from trainables.data.prepared import Prepared
from trainables.images.sources.catalogue import look_at
from trainables.images.sources.listing import list_source
from trainables.settings import SAMPLE, TrialSettings, override

COLUMNS = {"target", "degraded", "latent", "latent_degraded", "noise", "taught"}
NOBODY = 65534


def _packages() -> list[Path]:
    (side,) = list_source(SAMPLE).sides
    return [Path(side.place(row)) for row in range(len(side))]


@pytest.fixture
def foreign(prepared: Prepared, store_root: Path) -> Iterator[Path]:
    """The session's stores in a folder that this process may only read."""
    place = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    store = place / "store"
    shutil.copytree(store_root, store, ignore=shutil.ignore_patterns(".*", "catalogue-*"))
    for path in (place, store, *store.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:  # root may write everywhere
        os.seteuid(NOBODY)
    try:
        if not all(os.access(place, os.R_OK, effective_ids=True) for place in _packages()):
            pytest.skip("installed where only root may read")
        yield store
    finally:
        os.seteuid(os.getuid())
        for path in (place, store):
            path.chmod(0o755)
        shutil.rmtree(place)


def test_finished_store_is_read(tiny: TrialSettings, foreign: Path) -> None:
    before = sorted(foreign.rglob("*"))
    assert prepare(tiny, foreign, COLUMNS).train_rows == 8
    assert sorted(foreign.rglob("*")) == before


def test_unfinished_store_is_refused_in_one_line(tiny: TrialSettings, foreign: Path) -> None:
    with pytest.raises(InputError, match="cannot be written") as caught:
        prepare(override(tiny, {"pairs.train_pairs": 9}), foreign, COLUMNS)
    assert "\n" not in str(caught.value)


def test_lock_file_of_another_user_can_be_locked() -> None:
    """As in a folder of a group, where this user adds a store that needs those of another user."""
    with tempfile.TemporaryDirectory() as place:
        theirs = Path(place, ".pairs.lock")
        theirs.touch()
        theirs.chmod(0o444)
        Path(place).chmod(0o755)
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        try:
            with locked(theirs) as held:
                opened = os.open(theirs, os.O_RDONLY)
                assert held and take(opened) is False
                os.close(opened)
        finally:
            os.seteuid(os.getuid())


def test_images_are_checked_without_a_place_for_the_result(foreign: Path) -> None:
    (side,) = list_source(SAMPLE).sides
    assert not look_at(side, foreign).reasons


def test_plan_asks_for_a_writable_folder_only_if_it_makes_something(
    prepared: Prepared, store_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != store_root and access(path, mode))
    changes = tuple((name, str(value)) for name, value in TINY.items() if not name.startswith("training."))

    def plan(*more: tuple[str, str]) -> str:
        told = SweepSettings(
            "sinsr_loss_ratios",
            results=str(tmp_path),
            store=str(store_root),
            perceptual="none",
            confirm=0,
            set=(*changes, *more),
        )
        return plan_text(make_plan(resolve(told), download=False))

    assert "all prepared" in plan()
    with pytest.raises(InputError, match=rf"^--store {store_root}: {store_root} is not writable"):
        plan(("data.seed", "5"))
