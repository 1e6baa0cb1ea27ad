"""Connecting to a cluster: what is sent to it, from a terminal and from a Ray job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainables.common.cluster import refuse_job_folder, shipped_code
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
