"""cluster/gpu.yaml, checked by the tools that read it: Ray's launcher, EC2's request model, bash, `ray start`.

The tests need no network and no account: Ray validates the file offline, and botocore contains the request models.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import click
import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from tests.helpers.paths import ROOT

Config = dict[str, Any]  # the parsed YAML file

REPO = ROOT
REMOTE = "/home/ubuntu/restoration-sweeps"
COMMAND_LISTS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


@pytest.fixture
def config() -> Config:
    return yaml.safe_load((REPO / "cluster" / "gpu.yaml").read_text())


def validated(config: Config) -> Config:
    """The file with defaults, validated, as `ray up` does before its first request to AWS."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def ec2_complaints(node_config: Config) -> str:
    """Errors of EC2's RunInstances model for this request; empty if it is valid."""
    request = {**node_config, "MinCount": 1, "MaxCount": 1}  # Ray adds the counts
    model = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return botocore.validate.ParamValidator().validate(request, model).generate_report()


def exported_environment() -> dict[str, str]:
    """Environment of a node's shell after sourcing cluster/env.sh."""
    shown = subprocess.run(
        ["env", "-i", "HOME=/home/ubuntu", "PATH=/usr/bin:/bin", "sh", "-c", ". cluster/env.sh && env"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def ray_start_arguments(command: str) -> list[str]:
    """The arguments of `ray start` in a shell command."""
    words = shlex.split(command)
    return words[words.index("start") + 1 :]


def test_ray_accepts_the_file(config: Config) -> None:
    prepared = validated(config)
    nodes = prepared["available_node_types"]
    assert nodes["head"]["max_workers"] == 0, "Ray would start a second head as a worker"
    assert nodes["gpu_worker"]["max_workers"] <= prepared["max_workers"]
    # Ray's default setup commands install a nightly Ray and an unpinned boto3.
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == config["setup_commands"]


@pytest.mark.parametrize(
    "breaking",
    [
        lambda c: c.update(idle_timeout_minute=5),
        lambda c: c.update(idle_timeout_minutes="ten"),
        lambda c: c["auth"].update(ssh_usr="ubuntu"),
        lambda c: c["available_node_types"]["gpu_worker"].update(max_worker=8),
        lambda c: c["available_node_types"]["gpu_worker"].update(resources={"GPU": -1}),
        lambda c: c["available_node_types"]["head"].pop("node_config"),
        lambda c: c["setup_commands"].append({"run": "true"}),
    ],
    ids=[
        "key",
        "text-for-number",
        "auth-key",
        "node-key",
        "negative-gpu",
        "no-machine",
        "not-a-command",
    ],
)
def test_ray_refuses_invalid_files(config: Config, breaking: Callable[[Config], None]) -> None:
    breaking(config)
    with pytest.raises(ValidationError):
        validated(config)


def test_ray_refuses_an_unknown_head_type(config: Config) -> None:
    config["head_node_type"] = "haed"
    with pytest.raises((ValueError, KeyError), match=r"head_node_type|haed"):
        validated(config)


@pytest.mark.parametrize("node_type", ["head", "gpu_worker"])
def test_ec2_accepts_the_machines(config: Config, node_type: str) -> None:
    node_config = config["available_node_types"][node_type]["node_config"]
    assert ec2_complaints(node_config) == ""
    assert "InstanceTyp" in ec2_complaints({**node_config, "InstanceTyp": "g6.xlarge"})


def test_trials_train_on_the_workers_only(config: Config) -> None:
    nodes = config["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert nodes["gpu_worker"]["resources"]["GPU"] >= 1
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"], "a lost head ends the sweep"


def test_nodes_install_the_pinned_requirements(config: Config) -> None:
    mounts = config["file_mounts"]
    assert (REPO / mounts[f"{REMOTE}/requirements.txt"]).samefile(REPO / "requirements.txt")
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert len(installs) == 1
    assert installs[0].startswith("cd ~/restoration-sweeps &&")
    assert installs[0].endswith("pip install --quiet -r requirements.txt")


def test_installed_ray_is_the_pinned_version() -> None:
    """So the file is validated by the Ray version that runs on the cluster."""
    pin = re.search(r"^ray\[data,default,train,tune\]==(\S+)$", (REPO / "requirements.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert pin[1] == ray.__version__


def test_all_code_is_mounted_on_the_nodes(config: Config) -> None:
    mounted = {Path(remote).name for remote in config["file_mounts"] if remote.startswith(REMOTE)}
    packages = {path.parent.name for path in REPO.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == {"cluster", "search_spaces", "sweeps", "trainables"}
    assert packages | {"run_sweep.py"} <= mounted
    for remote, local in config["file_mounts"].items():
        if remote.startswith(REMOTE):
            assert (REPO / local).exists(), f"{local}: does not exist, so `ray up` would fail"


def test_commands_are_valid_bash(config: Config) -> None:
    for name in COMMAND_LISTS:
        for command in config[name]:
            checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{name}: {command}: {checked.stderr}"


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_accepts_the_flags(config: Config, commands: str) -> None:
    arguments = ray_start_arguments(config[commands][-1])
    parsed = start.make_context("start", list(arguments)).params  # parses only, starts nothing
    assert parsed["head"] == commands.startswith("head")
    with pytest.raises(click.NoSuchOption, match="objectmanager"):
        start.make_context("start", [*arguments, "--objectmanager-port=1"])


def test_dashboard_listens_only_on_the_head(config: Config) -> None:
    parsed = start.make_context("start", ray_start_arguments(config["head_start_ray_commands"][-1])).params
    assert parsed["include_dashboard"] is True
    assert parsed["dashboard_host"] == "127.0.0.1"
    assert "security_group" not in config["provider"], "extra inbound rules would open ports other than SSH"


def test_ray_requires_the_token(config: Config) -> None:
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert exported_environment()["RAY_AUTH_MODE"] == "token"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all(command.startswith(". ~/restoration-sweeps/cluster/env.sh &&") for command in config[name])


def test_environment_of_the_nodes() -> None:
    exported = exported_environment()
    assert exported["PATH"].split(os.pathsep)[0] == f"{REMOTE}/.venv/bin"
    assert exported["PYTHONPATH"] == REMOTE
    assert float(exported["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]) == 0.2
