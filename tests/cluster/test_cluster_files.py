"""The files for clusters other than AWS, by their readers: Ray's launcher, Kubernetes' schema, shellcheck, hadolint."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start, symmetric_run

from tests.helpers.paths import ROOT

CLUSTER = ROOT / "cluster"
TOOLS = Path(sys.executable).parent
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def loaded(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def complaints(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["onprem.yaml", "gcp.yaml"])
def test_ray_accepts_the_file(name: str) -> None:
    prepared = prepare_config(copy.deepcopy(loaded(name)))
    validate_config(prepared)
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config({**prepared, "idle_timeout_minute": 5})


@pytest.mark.parametrize("name", ["onprem.yaml", "gcp.yaml", "gpu.yaml"])
def test_no_trial_trains_on_the_head_and_calls_need_the_token(name: str) -> None:
    config = loaded(name)
    for commands in STARTS:
        words = shlex.split(config[commands][-1])
        parsed = start.make_context("start", words[words.index("start") + 1 :]).params
        assert parsed["head"] == commands.startswith("head")
        assert "cluster/env.sh" in config[commands][-1]
        # The limit of open files may not be raised on every machine; that must not stop the start.
        assert "{ ulimit -n 65536 || true; }" in config[commands][-1]
        if parsed["head"]:
            own = config.get("available_node_types", {}).get("head", {}).get("resources", {})
            assert (own.get("CPU", parsed["num_cpus"]), own.get("GPU", parsed["num_gpus"])) == (0, 0)
            assert parsed["dashboard_host"] == "127.0.0.1" and parsed["include_dashboard"]
    assert config["file_mounts"][next(mount for mount in config["file_mounts"] if "auth_token" in mount)]


@pytest.mark.parametrize("name", ["onprem.yaml", "gcp.yaml", "gpu.yaml"])
def test_all_code_goes_to_the_nodes(name: str) -> None:
    mounted = {Path(remote).name for remote in loaded(name)["file_mounts"]}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages | {"run_sweep.py", "requirements.txt"} <= mounted


@pytest.mark.parametrize("name", ["onprem.yaml", "gcp.yaml", "gpu.yaml"])
def test_commands_are_valid_shell(name: str, tmp_path: Path) -> None:
    config, script = loaded(name), tmp_path / "commands.sh"
    lists = [key for key in config if key.endswith("_commands")]
    commands = [command for key in lists for command in config[key]]
    # Ray sets RAY_HEAD_IP; a file under ~ is not there to be looked into.
    script.write_text("\n".join(["#!/bin/bash", "export RAY_HEAD_IP=", *commands]) + "\n", encoding="utf-8")
    assert commands and complaints(TOOLS / "shellcheck", "--exclude=SC1090,SC2086,SC2088,SC2164", script) == ""


def test_kubernetes_accepts_the_pods() -> None:
    job = loaded("kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__ and cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert job["spec"]["shutdownAfterJobFinishes"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]}
        kubernetes_validate.validate(pod, "1.33", strict=True)
        pod["spec"]["containers"][0]["resource"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, "1.33", strict=True)
    assert complaints("sh", "-n", "-c", job["spec"]["entrypoint"]) == ""


def test_scripts_and_dockerfile_are_clean() -> None:
    assert complaints(TOOLS / "shellcheck", CLUSTER / "slurm.sbatch", *CLUSTER.glob("*.sh")) == ""
    assert complaints(TOOLS / "hadolint", "--no-color", CLUSTER / "Dockerfile") == ""


def test_dockerfile_has_all_code() -> None:
    copied = re.findall(r"^COPY (\S+)", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert set(copied) == packages | {"run_sweep.py", "requirements.txt"}


def test_slurm_job_gives_ray_flags_that_it_knows() -> None:
    script = (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in script.splitlines() if "symmetric-run" in line)
    words = shlex.split(line.partition("symmetric-run")[2].partition(" -- ")[0])
    flags = [re.sub(r"^\$.*", "4", word) for word in words]
    assert symmetric_run.make_context("symmetric-run", [*flags[:4], "--", "true"]).params["min_nodes"] == 4
    parsed = start.make_context("start", flags[4:]).params
    assert (parsed["num_cpus"], parsed["num_gpus"]) == (4, 4)
