"""`python -m trainables.data`: its output, its files, its errors and its deletions."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainables.common.locks import locked
from trainables.data.__main__ import main
from trainables.data.prepared import Prepared
from trainables.data.stages.kinds import STAGE_OF
from trainables.data.stores.folder import StoreFolder
from trainables.data.stores.inventory import STORE_KINDS, remove, stores_below
from trainables.data.stores.shard_format import MANIFEST, shard_name
from trainables.data.stores.store import Store


@pytest.fixture
def root(prepared: Prepared, store_root: Path, tmp_path: Path) -> Path:
    """A copy of the session's stores of `tiny`, including the pairs."""
    names = [Path(path).name for path in (*prepared.train_stores.values(), *prepared.validation_stores.values())]
    for name in names:
        shutil.copytree(store_root / name, tmp_path / "stores" / name)
    return tmp_path / "stores"


def the(root: Path, kind: str) -> Path:
    (path,) = root.glob(f"{kind}-*")
    return path


def aged(path: Path, days: float) -> None:
    then = time.time() - 86400 * days
    for file in path.iterdir():
        os.utime(file, (then, then))


def test_inspect_shows_a_store_and_writes_a_sheet(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, sheet = the(root, "pairs-train"), root / "sheet.png"
    assert main(["inspect", str(pairs), "--sheet", str(sheet)]) == 0
    shown = capsys.readouterr().out
    assert "8 rows in 1 shards" in shown and "uint8 3 x 64 x 64, 12.3 kB a row" in shown
    assert "degradation.jpeg_range           [40.0, 80.0]" in shown and "rejected: 0 images" in shown
    assert (
        "from 6 photographs, 1 to 2 pairs of each" in shown and f"8 pairs, degraded and target, are in {sheet}" in shown
    )
    # Four pairs across and two down, each pair two images of 160 pixels: the last target is in the corner.
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 164 + 4, 4 * 324 + 4, 3)
    target = Store(pairs)["target"][7].transpose(1, 2, 0)
    enlarged = np.asarray(Image.fromarray(target).resize((160, 160), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(pixels[-164:-4, -164:-4], enlarged)


def test_inspect_lists_a_root_with_unfinished_stores(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (the(root, "targets-train") / MANIFEST).unlink()
    assert main(["inspect", str(root)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert len(lines) == 5
    assert "interrupted" in lines[the(root, "targets-train").name]
    assert "8 rows" in lines[the(root, "pairs-train").name] and "used" in lines[the(root, "pairs-train").name]


def test_store_with_a_damaged_manifest_is_reported(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = the(root, "latents-train") / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert main(["verify", str(root)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(": intact") == 4 and f"{manifest.parent}: damaged store" in shown
    assert main(["inspect", str(root)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert " damaged " in lines[manifest.parent.name]


def test_verify_names_the_damaged_store(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(root)]) == 0
    assert capsys.readouterr().out.count(": intact") == 5
    shard = the(root, "latents-train") / shard_name(0)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(["verify", str(root)]) == 1
    shown = capsys.readouterr().out
    assert shown.count(": intact") == 4
    assert f"{shard.parent}: damaged store, the content of shard-00000.arrow does not match" in shown


def test_prune_deletes_old_stores_after_confirmation(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = the(root, "latents-train"), the(root, "pairs-train")
    aged(old, 40)
    assert main(["prune", str(root)]) == 0
    assert "choose stores" in capsys.readouterr().out and old.exists()

    monkeypatch.setattr("builtins.input", lambda question: "")
    assert main(["prune", str(root), "--older-than", "30"]) == 0
    shown = capsys.readouterr().out
    assert "nothing was deleted" in shown and old.exists()
    assert [line.split()[0] for line in shown.splitlines() if line.endswith("  delete")] == [old.name]

    assert main(["prune", str(root), "--older-than", "30", "--yes"]) == 0
    assert f"deleted {old.name}" in capsys.readouterr().out
    assert not old.exists() and new.exists()


def test_prune_keeps_the_last_used_stores_up_to_a_size(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for days, kind in enumerate(("pairs-train", "latents-train", "targets-train", "pairs-val", "latents-val")):
        aged(the(root, f"{kind}*" if kind.endswith("val") else kind), days)
    assert main(["prune", str(root), "--keep", "0.00035", "--yes"]) == 0
    left = {path.name.rpartition("-")[0] for path in root.iterdir() if path.is_dir()}
    # 350 kB are enough for the training pairs, latents and targets, but not for the older validation stores too.
    assert left == {"pairs-train", "latents-train", "targets-train"}


def test_prune_keeps_a_store_that_is_being_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(the(root, "pairs-train"))
    assert main(["prune", str(root), "--older-than", "0", "--yes"]) == 1
    assert f"kept {store.path.name}: it is in use" in capsys.readouterr().out
    assert [path.name for path in root.iterdir() if path.is_dir()] == [store.path.name]
    del store
    assert main(["prune", str(root), "--older-than", "0", "--yes"]) == 0
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_prune_keeps_a_store_that_is_being_made(root: Path) -> None:
    (store,) = (each for each in stores_below(root) if each.path == the(root, "pairs-train"))
    lock = root / f".{store.name}.lock"
    with locked(lock) as alone:
        assert alone
        assert remove(store) == "it is in use" and store.path.exists()
        waited_for = lock.stat().st_ino
    assert remove(store) == "" and not store.path.exists()
    assert lock.stat().st_ino == waited_for  # else a waiting process and the next one would lock two files


def test_no_store_is_opened_while_it_is_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.name == MANIFEST:
            with path.open() as file, pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            tried.append(path.parent.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    stores = stores_below(root)
    assert [remove(store) for store in stores] == [""] * 5
    assert tried == [store.path.name for store in stores]


def test_inventory_tolerates_files_that_vanish(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stores_below(root)
    (before[0].path / ".shard-00001.arrow.1.partial").symlink_to("gone")  # listed, but missing when it is read
    assert stores_below(root) == before
    is_dir = Path.is_dir

    def removing(path: Path) -> bool:
        there = is_dir(path)
        if path == before[1].path:
            shutil.rmtree(path)
        return there

    monkeypatch.setattr(Path, "is_dir", removing)
    assert stores_below(root) == [before[0], *before[2:]]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete everything")
@pytest.mark.parametrize("what", ["root", "store", "manifest"])
def test_prune_reports_why_a_store_was_kept(root: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    store = the(root, "pairs-train")
    locked = {"root": root, "store": store, "manifest": store / MANIFEST}[what]
    locked.chmod(0o500)
    try:
        assert main(["prune", str(root), "--older-than", "0", "--yes"]) == 1
        assert f"kept {store.name}: Permission denied" in capsys.readouterr().out
        assert len(Store(store, verify=True)) == 8
    finally:
        locked.chmod(0o700)


def test_prune_also_finds_windows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders with some shards of a store in another place."""
    source = the(root, "latents-train")
    window = root / "elsewhere" / "windows" / source.name
    shutil.copytree(source, window)
    (found,) = stores_below(root / "elsewhere")
    assert (found.name, found.state) == (f"windows/{source.name}", "some of 8 rows")
    assert found.window and not found.complete and found.bytes > 0
    reading = Store(window, source=StoreFolder(str(root), source.name), keep=1)
    prune = ["prune", str(root / "elsewhere"), "--older-than", "0", "--yes"]
    assert main(prune) == 1
    assert f"kept windows/{source.name}: it is in use" in capsys.readouterr().out
    del reading
    assert main(prune) == 0
    assert f"deleted windows/{source.name}" in capsys.readouterr().out and not window.exists()


def test_every_kind_of_store_is_found() -> None:
    assert set(STORE_KINDS) == set(STAGE_OF.values())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepare", "--preset", "nosuch"], ["--preset nosuch", "sinsr-stage1"]),
        (["prepare", "--preset", "sinsr-stage1"], ["--preset sinsr-stage1", "--data FOLDER"]),
        (["prepare", "--method", "nosuch"], ["nosuch", "resshift"]),
        (["prepare", "--set", "nosuch=1"], ["nosuch"]),
        (["prepare", "--set", "pairs.train_pairs"], ["--set pairs.train_pairs", "KEY=VALUE"]),
        (["prepare", "--data", "nosuch"], ["nosuch", "no such folder"]),
        (["prepare", "--data", "~nosuch"], ["~nosuch", "no such folder"]),
        (["prepare", "--store", "~nosuch/x"], ["--store ~nosuch/x: not a valid path"]),
        (
            ["prepare", "--method", "latent_diffusion", "--set", "base.weights=~nosuch/x", "--dry-run"],
            ["base.weights ~nosuch/x: not a valid path"],
        ),
        (["prepare", "--set", "pairs.train_pairs=100000000"], ["--store", "of disk", "are free"]),
        (["inspect", "nosuch"], ["nosuch", "no such folder"]),
        (["verify", "nosuch"], ["nosuch", "no such folder"]),
        (["prune", "nosuch"], ["nosuch", "no such folder"]),
        (
            ["prepare", "--set", "lora.rank=3"],
            ["--set lora.rank", "sinsr reads no settings of lora", "sinsr, teacher"],
        ),
        (
            ["prepare", "--method", "latent_diffusion", "--set", "lora.rank=0", "--set", "lora.scale=2"],
            ["--set lora.scale=2: has no effect with lora.rank=0"],
        ),
        (["prepare", "--cpus", "-1"], ["--cpus", "0", "-1"]),
        (["inspect", "tests"], ["tests: no store found"]),
        (["inspect", ""], ["STORE is empty"]),
        (["verify", ""], ["STORE is empty"]),
        (["prune", ""], ["ROOT is empty"]),
        (["prune", ".", "--keep", "-1"], ["--keep", "0", "-1"]),
        (["prune", ".", "--older-than", "nan"], ["--older-than", "nan"]),
        (["prune", ".", "--older", "1"], ["unrecognized arguments: --older"]),
        (["prepare", "--dat", "x"], ["unrecognized arguments: --dat"]),
        ([], ["COMMAND"]),
    ],
)
def test_invalid_input_is_refused(
    arguments: list[str], named: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--store", str(tmp_path / "stores")] if arguments[:1] == ["prepare"] else []
    assert main([*arguments[:1], *more, *arguments[1:]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m trainables.data") and ": error: " in error and error.count("\n") == 1
    assert [part for part in named if part not in error] == []
    assert not (tmp_path / "stores").exists()


def test_dry_run_prints_bytes_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", "pairs.train_pairs=1000", "--store", str(tmp_path / "stores"), "--dry-run"]
    assert main(["prepare", *flags]) == 0
    shown = capsys.readouterr().out
    # 1,000 pairs of 64 x 64 x 3 and 16 x 16 x 3 bytes; with latents, targets and the other splits 56 MB.
    assert "1000 rows, 13.1 MB" in shown
    assert "to be made: 56" in shown and " in about " in shown
    assert not (tmp_path / "stores").exists()


def test_dry_run_for_a_cluster_estimates_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the head of a cluster, which often has no GPU."""
    flags = ["--store", str(tmp_path / "stores"), "--dry-run", "--address", "auto", "--gpus", "8"]
    assert main(["prepare", *flags]) == 0
    assert capsys.readouterr().out.endswith(" on this machine alone\n")


def test_empty_store_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--store", ""]) == 2
    assert "error: --store: the value is empty" in capsys.readouterr().err


def test_inspect_refuses_unwritable_sheet_and_damaged_list(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = the(root, "pairs-train")
    for sheet, why in (
        ("sheet.txt", "unknown file extension"),
        ("nowhere/sheet.png", "No such file"),
        ("", "is empty"),
    ):
        assert main(["inspect", str(pairs), "--sheet", sheet and str(root / sheet)]) == 2
        error = capsys.readouterr().err
        assert "--sheet" in error and why in error and error.count("\n") == 1
    (pairs / "rejected.parquet").write_text("no table")
    assert main(["inspect", str(pairs), "--sheet", str(root / "sheet.png")]) == 2
    error = capsys.readouterr().err
    assert f"{pairs / 'rejected.parquet'}: cannot be read" in error and error.count("\n") == 1
