"""Finished trials and weights in a bucket: what is copied to this machine, and when again. On a real S3 server."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.buckets import bucket_uri, endpoint
from tests.trainables.training.test_checkpoint_folders import writer
from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError
from trainables.methods.build import build_method
from trainables.pretrained.fetched import finished_at, weights_at
from trainables.pretrained.shipped import ASSETS, SHIPPED_AUTOENCODER, autoencoder_path
from trainables.settings import override
from trainables.settings.presets import preset
from trainables.training.bucket_checkpoints import upload_checkpoint
from trainables.training.checkpoint_folders import keep_checkpoint

__all__ = ["endpoint"]
FINISHED = ASSETS / "latent_diffusion_sample"


@pytest.fixture
def run(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BucketFolder:
    """A run with a best/."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = BucketFolder(bucket_uri(endpoint, f"{tmp_path.name}/space/run"))
    for path in FINISHED.iterdir():
        folder.join("best").upload(path, path.name)
    folder.write("settings.yaml", b"")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_stands_for_its_best(run: BucketFolder, tmp_path: Path) -> None:
    """In a bucket and in a folder."""
    shutil.copytree(FINISHED, tmp_path / "run" / "best")
    assert finished_at("FINISHED", str(tmp_path / "run")) == tmp_path / "run" / "best"
    assert finished_at("FINISHED", str(FINISHED)) == FINISHED
    expected = {name: data for name, data in content(FINISHED).items() if name.endswith((".json", ".safetensors"))}
    for place in (run, run.join("best")):
        assert content(finished_at("FINISHED", place.uri)) == expected


def test_only_what_has_changed_is_copied_again(run: BucketFolder) -> None:
    best = run.join("best")
    found = finished_at("FINISHED", run.uri)
    before = {path.name: path.stat().st_ino for path in found.iterdir()}
    best.write("settings.json", b"{}")
    best.delete(["weights.safetensors"])
    best.upload(SHIPPED_AUTOENCODER, "other.safetensors")
    (found / ".settings.json.partial").touch()  # of a killed process
    assert finished_at("FINISHED", run.uri) == found
    assert content(found) == {"settings.json": b"{}", "other.safetensors": SHIPPED_AUTOENCODER.read_bytes()}
    after = {path.name: path.stat().st_ino for path in found.iterdir()}
    finished_at("FINISHED", run.uri)
    assert {path.name: path.stat().st_ino for path in found.iterdir()} == after != before


def test_damaged_checkpoint_is_refused_and_its_state_is_not_copied(run: BucketFolder, tmp_path: Path) -> None:
    trial = run.join("trials").join("t000")
    upload_checkpoint(keep_checkpoint(tmp_path / "node", 2, writer(2.0)), trial)
    checkpoint = trial.join("checkpoint_000002")
    found = finished_at("FINISHED", checkpoint.uri)
    assert "state.pt" in [path.name for path in (tmp_path / "node" / checkpoint.name).iterdir()]
    assert sorted(content(found)) == ["checksums.json", "settings.json"]
    for change, message in {
        b'{"changed": 1}': "is damaged (the content of settings.json has changed since it was written)",
        None: "has no settings.json; expected a finished trial",
    }.items():
        checkpoint.write("settings.json", change) if change else checkpoint.delete(["settings.json"])
        with pytest.raises(InputError) as refused:
            finished_at("FINISHED", checkpoint.uri)
        assert message in str(refused.value) and str(refused.value).startswith("FINISHED s3://")
    checkpoint.write("settings.json", b"{}")
    checkpoint.write("checksums.json", b"[]")
    with pytest.raises(InputError, match=r"is damaged \(checksums.json is not readable"):
        finished_at("FINISHED", checkpoint.uri)


def test_objects_of_somebody_else_write_no_other_files(run: BucketFolder, tmp_path: Path) -> None:
    for name in ("../outside.json", ".hidden.json", "below/a.json", "large.bin"):
        run.join("best").write(name, b"{}")
    found = finished_at("FINISHED", run.join("best").uri)
    assert not {"outside.json", ".hidden.json", "a.json", "large.bin"} & {path.name for path in tmp_path.rglob("*")}
    assert sorted(content(found)) == ["settings.json", "weights.safetensors"]


def test_method_starts_from_weights_in_a_bucket(run: BucketFolder) -> None:
    values = json.loads((FINISHED / "settings.json").read_text(encoding="utf-8"))
    settings = override(preset("sample").trial, {"method": "latent_diffusion", **values, "training.max_steps": 1})
    built = [
        build_method(override(settings, {"checkpoint": place}), torch.device("cpu")).result()
        for place in (str(FINISHED), run.uri)
    ]
    assert built[0].keys() == built[1].keys()
    assert all(torch.equal(built[0][name], built[1][name]) for name in built[0])


def test_frozen_weights_in_a_bucket_are_asked_for_once(
    run: BucketFolder, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.upload(SHIPPED_AUTOENCODER, "weights/vq_f4.safetensors")
    uri = run.join("weights").join("vq_f4.safetensors").uri
    found = autoencoder_path(uri)
    assert found.name == "vq_f4.safetensors" and found.read_bytes() == SHIPPED_AUTOENCODER.read_bytes()
    monkeypatch.setattr(BucketFolder, "download", None)  # an unreachable bucket must not end a trial that has begun
    os.utime(found)
    assert autoencoder_path(uri) == found
    with pytest.raises(InputError, match=r"autoencoder.weights s3://.*/nothing: has no settings.json or config.json"):
        autoencoder_path(run.join("nothing").uri)
    with pytest.raises(InputError, match=r"^autoencoder.weights: contains credentials"):
        autoencoder_path(uri.replace("s3://", "s3://key:secret@"))


def test_diffusers_folder_in_a_bucket(run: BucketFolder, tmp_path: Path) -> None:
    vae = ASSETS / "stable_diffusion_sample" / "vae"
    for path in vae.iterdir():
        run.join("vae").upload(path, path.name)
    assert content(weights_at("autoencoder.weights", run.join("vae").uri)) == content(vae)


@pytest.mark.parametrize("look", [finished_at, weights_at])
def test_uri_of_another_kind_is_refused(look: Callable[[str, str], Path]) -> None:
    with pytest.raises(InputError, match=r"^--checkpoint https://host/best: expected a folder, or a bucket"):
        look("--checkpoint", "https://host/best")
