"""cluster/gpu.yaml and gpu-groups.yaml against their readers: Ray's launcher, EC2's request model, bash, `ray start`.

Needs no network and no account: Ray validates the file alone, botocore contains the model of every request, and a local
server answers as IAM, S3 and EC2 do.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import botocore.validate
import click
import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from cluster import aws_account
from tests.helpers.buckets import endpoint
from tests.helpers.paths import ROOT
from trainables.settings.presets import PRESETS

__all__ = ["endpoint"]
Config = dict[str, Any]  # the parsed YAML file

NODE_TYPES = ("head", "gpu_worker", "gpu_worker_g5")

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
    """The first steps of `ray up`, before any request to AWS: fill in the defaults, then check."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def ec2_complaints(node_config: Config) -> str:
    """The errors of EC2's RunInstances for the form of this request; empty if it is valid."""
    request = {**node_config, "MinCount": 1, "MaxCount": 1}  # Ray adds the counts
    model = botocore.session.Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    return botocore.validate.ParamValidator().validate(request, model).generate_report()


def exported_environment() -> dict[str, str]:
    """The environment of a node's shell after sourcing cluster/env.sh."""
    shown = subprocess.run(
        ["env", "-i", "HOME=/home/ubuntu", "PATH=/usr/bin:/bin", "sh", "-c", ". cluster/env.sh && env"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(line.split("=", 1) for line in shown.splitlines())


def ray_start_arguments(command: str) -> list[str]:
    """Flags of `ray start` in a shell command, as Ray's own command line parses them."""
    words = shlex.split(command)
    return words[words.index("start") + 1 :]


def test_ray_accepts_the_file(config: Config) -> None:
    prepared = validated(config)
    nodes = prepared["available_node_types"]
    assert nodes["head"]["max_workers"] == 0, "Ray would start a second head as a worker"
    assert all(nodes[name]["max_workers"] <= prepared["max_workers"] for name in NODE_TYPES)
    # Ray's default set-up installs a nightly Ray and an unpinned boto3.
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
def test_ray_refuses_a_broken_copy(config: Config, breaking: Callable[[Config], None]) -> None:
    breaking(config)
    with pytest.raises(ValidationError):
        validated(config)


def test_ray_refuses_an_unknown_head_type(config: Config) -> None:
    config["head_node_type"] = "haed"
    with pytest.raises((ValueError, KeyError), match=r"head_node_type|haed"):
        validated(config)


@pytest.mark.parametrize("node_type", NODE_TYPES)
def test_ec2_accepts_the_node_configs(config: Config, node_type: str) -> None:
    node_config = config["available_node_types"][node_type]["node_config"]
    assert ec2_complaints(node_config) == ""
    assert "InstanceTyp" in ec2_complaints({**node_config, "InstanceTyp": "g6.xlarge"})


def test_trials_train_on_the_workers_only(config: Config) -> None:
    nodes = config["available_node_types"]
    assert set(nodes) == set(NODE_TYPES)
    assert nodes["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in nodes["head"]["node_config"], "a reclaimed head takes the driver with it"
    for name in NODE_TYPES[1:]:
        assert nodes[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert nodes[name]["resources"]["GPU"] == 1, "a trial with one worker would pay for GPUs that idle"
    types = [nodes[name]["node_config"]["InstanceType"] for name in NODE_TYPES]
    assert len(set(types)) == len(types)


def test_file_for_groups_has_other_machines_in_one_zone_and_nothing_else(config: Config) -> None:
    groups = yaml.safe_load((REPO / "cluster" / "gpu-groups.yaml").read_text())
    prepared = validated(groups)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    other = {name for name in config | groups if config.get(name) != groups.get(name)}
    assert other == {"cluster_name", "max_workers", "provider", "available_node_types"}
    region = config["provider"]["region"]
    assert groups["provider"] == {**config["provider"], "availability_zone": f"{region}a"}
    nodes, single = groups["available_node_types"], config["available_node_types"]
    assert nodes.pop("head") == single["head"]
    for node in nodes.values():
        assert node["resources"]["GPU"] >= max(preset.workers for preset in PRESETS.values())
        assert node["max_workers"] <= groups["max_workers"]
        machine = {**node["node_config"], "InstanceType": single["gpu_worker"]["node_config"]["InstanceType"]}
        assert machine == single["gpu_worker"]["node_config"] and ec2_complaints(node["node_config"]) == ""
        assert node["node_config"]["InstanceType"].endswith("12xlarge")  # four GPUs and 48 CPUs


def test_head_that_shuts_down_costs_nothing(config: Config) -> None:
    """`ray exec --stop` ends with `shutdown`; a machine that is only stopped keeps its disk."""
    assert config["available_node_types"]["head"]["node_config"]["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert config["provider"]["cache_stopped_nodes"] is False


def test_one_place_names_the_region(config: Config) -> None:
    """Ray looks for machines in all zones of the region, if none are named."""
    text = (REPO / "cluster" / "gpu.yaml").read_text()
    assert (
        len(re.findall(r"\b[a-z]{2}-[a-z]+-\d\b", text)) == 1 and aws_account.region() == config["provider"]["region"]
    )
    assert "availability_zone" not in config["provider"]


def test_roles_of_the_machines_are_those_of_the_script(config: Config) -> None:
    nodes = config["available_node_types"]
    roles = {name: nodes[name]["node_config"]["IamInstanceProfile"] for name in NODE_TYPES}
    workers = {name: {"Name": aws_account.WORKER} for name in NODE_TYPES[1:]}
    assert roles == {"head": {"Name": aws_account.HEAD}, **workers}


def test_account_is_prepared_and_prepared_again(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a server with S3 and IAM."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    assert aws_account.main(["the-bucket"]) == 0
    first = capsys.readouterr().out
    assert first.count("made ") == 8 and "there " not in first
    assert aws_account.main(["the-bucket"]) == 0
    assert "made " not in capsys.readouterr().out.replace("made     bucket", "")  # its owner may make it again
    iam = boto3.client("iam", region_name="us-west-2")
    for role in (aws_account.HEAD, aws_account.WORKER):
        (held,) = iam.get_instance_profile(InstanceProfileName=role)["InstanceProfile"]["Roles"]
        assert held["RoleName"] == role
        policy = iam.get_role_policy(RoleName=role, PolicyName="restoration-sweeps")["PolicyDocument"]
        allowed = {action: one["Resource"] for one in policy["Statement"] for action in one["Action"]}
        assert allowed["s3:PutObject"] == "arn:aws:s3:::the-bucket/*"
        # The head may give this role to machines, and no other; workers may give none.
        expected = f"arn:aws:iam::*:role/{aws_account.WORKER}" if role == aws_account.HEAD else None
        assert allowed.get("iam:PassRole") == expected
        assert ("ec2:RunInstances" in allowed) == (role == aws_account.HEAD)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert aws_account.main(["the-bucket"]) == 1
    assert capsys.readouterr().err.startswith("aws_account.py: error: Could not connect")


@pytest.mark.parametrize("file", ["gpu.yaml", "gpu-groups.yaml"])
def test_ray_prepares_the_account_and_starts_every_machine(
    endpoint: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What `ray up` does before it reaches for ssh, by Ray's own code, on a server with IAM and EC2."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{endpoint}")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the ssh key below it
    file_config = yaml.safe_load((REPO / "cluster" / file).read_text())
    region = file_config["provider"]["region"]
    ec2 = boto3.client("ec2", region_name=region)
    ec2.delete_key_pair(KeyName=f"ray-autoscaler_{region}")  # the other file's, whose private half is elsewhere
    assert aws_account.main(["the-bucket"]) == 0
    ready = bootstrap_aws(validated(file_config))
    assert oct(Path(ready["auth"]["ssh_private_key"]).stat().st_mode & 0o777) == "0o600"

    provider = AWSNodeProvider(ready["provider"], ready["cluster_name"])
    nodes = ready["available_node_types"]
    for node in nodes.values():
        provider.create_node(node["node_config"], {}, 1)
    reservations = ec2.describe_instances(InstanceIds=provider.non_terminated_nodes({}))["Reservations"]
    started = {one["InstanceType"]: one for group in reservations for one in group["Instances"]}
    assert len(started) == len(nodes)
    for name, node in nodes.items():
        machine, role = node["node_config"], aws_account.HEAD if name == "head" else aws_account.WORKER
        instance = started[machine["InstanceType"]]
        assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{role}")
        assert (instance.get("InstanceLifecycle") == "spot") == (name != "head")
        subnets = ec2.describe_subnets(SubnetIds=machine["SubnetIds"])["Subnets"]
        zones = {subnet["AvailabilityZone"] for subnet in subnets}
        assert zones == {f"{region}a"} if file == "gpu-groups.yaml" else len(zones) > 1
        (group,) = ec2.describe_security_groups(GroupIds=machine["SecurityGroupIds"])["SecurityGroups"]
        open_to_all = [rule for rule in group["IpPermissions"] if rule["IpRanges"]]
        assert [(rule["FromPort"], rule["ToPort"]) for rule in open_to_all] == [(22, 22)]


@pytest.mark.parametrize("file", ["gpu.yaml", "gcp.yaml"])
def test_nodes_install_the_pinned_requirements_once(file: str, tmp_path: Path) -> None:
    """The command itself, with a Python that only writes down what is asked of it."""
    config = yaml.safe_load((REPO / "cluster" / file).read_text())
    mounts = config["file_mounts"]
    assert (REPO / mounts[f"{REMOTE}/requirements.txt"]).samefile(REPO / "requirements.txt")
    (install,) = [command for command in config["setup_commands"] if "pip install" in command]
    code, tools, calls = tmp_path / "restoration-sweeps", tmp_path / "tools", tmp_path / "calls"
    for folder in (code, tools):
        folder.mkdir()
    pip = f'#!/bin/sh\necho "$@" >> {calls}\n[ ! -e {tmp_path}/full ]\n'
    (tools / "pip").write_text(pip)
    (tools / "python3").write_text(f"#!/bin/sh\nmkdir -p .venv/bin && cp {tools}/pip .venv/bin/\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)

    def installs() -> tuple[bool, int]:
        done = subprocess.run(["bash", "-c", install], env={"HOME": str(tmp_path), "PATH": f"{tools}:/usr/bin:/bin"})
        return done.returncode == 0, calls.read_text().count("install --quiet -r requirements.txt")

    (code / "requirements.txt").write_text("ray\n")
    (tmp_path / "full").touch()
    assert installs() == (False, 1)  # the disk is full: the next start tries again
    (tmp_path / "full").unlink()
    assert [installs(), installs()] == [(True, 2), (True, 2)]
    (code / "requirements.txt").write_text("ray\ntorch\n")
    assert installs() == (True, 3)


def test_installed_ray_is_the_pinned_one() -> None:
    """So the validation above is done by the Ray version that will run the cluster."""
    pin = re.search(r"^ray\[data,default,train,tune\]==(\S+)$", (REPO / "requirements.txt").read_text(), re.MULTILINE)
    assert pin is not None
    assert pin[1] == ray.__version__


def test_nodes_have_what_torch_asks_for_a_gpus_utilisation() -> None:
    """`torch.cuda.utilization` imports pynvml, which torch does not require; without it the column stays empty."""
    assert re.search(r"^nvidia-ml-py==\S+$", (REPO / "requirements.txt").read_text(), re.MULTILINE)
    dependencies = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["dependencies"]
    assert any(name.startswith("nvidia-ml-py") for name in dependencies)


def test_all_code_is_mounted_on_the_nodes(config: Config) -> None:
    mounted = {Path(remote).name for remote in config["file_mounts"] if remote.startswith(REMOTE)}
    packages = {path.parent.name for path in REPO.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages == {"cluster", "search_spaces", "sweeps", "trainables"}
    assert packages | {"run_sweep.py"} <= mounted
    for remote, local in config["file_mounts"].items():
        if remote.startswith(REMOTE):
            assert (REPO / local).exists(), f"{local}: `ray up` would stop at this file mount"


def test_commands_are_valid_shell(config: Config) -> None:
    for name in COMMAND_LISTS:
        for command in config[name]:
            checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
            assert checked.returncode == 0, f"{name}: {command}: {checked.stderr}"


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_start_accepts_the_flags(config: Config, commands: str) -> None:
    arguments = ray_start_arguments(config[commands][-1])
    parsed = start.make_context("start", list(arguments)).params  # parses, does not start
    assert parsed["head"] == commands.startswith("head")
    with pytest.raises(click.NoSuchOption, match="objectmanager"):
        start.make_context("start", [*arguments, "--objectmanager-port=1"])


def test_dashboard_runs_on_the_heads_localhost(config: Config) -> None:
    parsed = start.make_context("start", ray_start_arguments(config["head_start_ray_commands"][-1])).params
    assert parsed["include_dashboard"] is True
    assert parsed["dashboard_host"] == "127.0.0.1"
    assert "security_group" not in config["provider"], "extra inbound rules would open ports beside SSH"


def test_calls_to_ray_need_the_token(config: Config) -> None:
    assert config["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert exported_environment()["RAY_AUTH_MODE"] == "token"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert all(command.startswith(". ~/restoration-sweeps/cluster/env.sh &&") for command in config[name])


def test_environment_of_the_nodes() -> None:
    exported = exported_environment()
    assert exported["PATH"].split(os.pathsep)[0] == f"{REMOTE}/.venv/bin"
    assert exported["PYTHONPATH"] == REMOTE
    assert float(exported["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"]) == 0.2
    # `ray job stop` kills a sweep after Ray's own 3 s, before it has written how to resume it.
    assert int(exported["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    dockerfile = (REPO / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    for name in ("RAY_AUTH_MODE", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_JOB_STOP_WAIT_TIME_S"):
        assert f"{name}={exported[name]}" in dockerfile
    assert exported.get("XDG_CACHE_HOME") == ("/mnt/local" if os.access("/mnt/local", os.W_OK) else None)
