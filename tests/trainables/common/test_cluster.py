"""Connecting to a cluster: what is sent to it, from a terminal and from a Ray job."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env import packaging

from trainables.common.cluster import check_upload, refuse_job_folder, sent_bytes, shipped_code
from trainables.common.errors import InputError

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of `ray job submit`


def test_a_job_sends_no_code_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "working_dir" in shipped_code("results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}))
    assert shipped_code("results") == {}
    with pytest.raises(InputError, match=r"--results results: inside the working directory of this Ray job"):
        refuse_job_folder("--results", "results")
    refuse_job_folder("--results", str(tmp_path.parent / "shared"))


def test_a_job_without_a_working_directory_sends_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOB, json.dumps({"runtime_env": {"env_vars": {"A": "1"}}}))
    assert "working_dir" in shipped_code("results")
    refuse_job_folder("--results", "results")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Code, results, an ignored folder, and photographs that should not be there."""
    made = tmp_path / "checkout"
    for name, size in {
        "code.py": 1_000,
        "results/run/weights": 90_000,
        "ignored/file": 90_000,
        "data/photographs/1.png": 9_000,
        "data/photographs/2.png": 8_000,
        "data/list.txt": 2_000,
    }.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(bytes(size))
    (made / ".gitignore").write_text("/ignored/\n")
    return made


def test_what_ray_sends_is_counted_as_ray_packs_it(checkout: Path, tmp_path: Path) -> None:
    runtime_env = {"working_dir": str(checkout), "excludes": ["results"]}
    packaging._zip_files(str(checkout), ["results"], str(tmp_path / "sent.zip"), include_gitignore=True)
    with zipfile.ZipFile(tmp_path / "sent.zip") as packed:
        files = {checkout / entry.filename: entry.file_size for entry in packed.infolist()}
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in packed.infolist())
    counted = sent_bytes(runtime_env)
    assert {path: size for path, size in counted.items() if path.is_file()} == files
    assert counted[checkout] == sum(files.values()) == 20_010


def test_a_checkout_that_is_too_large_names_its_folder(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_env = {"working_dir": str(checkout), "excludes": ["results"]}
    check_upload("host:1", runtime_env)
    monkeypatch.setattr(packaging, "GCS_STORAGE_MAX_SIZE", 20_000)  # as RAY_max_grpc_message_size does
    with pytest.raises(InputError) as refused:
        check_upload("host:1", runtime_env)
    assert str(refused.value) == (
        f"--address host:1: {checkout} has 20 kB, and Ray sends at most 20 kB to the nodes; 17 kB are in "
        f"{checkout}/data/photographs: move it out of the repository, or name it in .gitignore"
    )
    check_upload("host:1", {"working_dir": str(checkout), "excludes": ["results", "data"]})
    check_upload("host:1", {})  # a Ray job, whose code is there already
