"""The files for clusters other than AWS, by their readers or the schemas that these publish.

Ray's launcher, Compute Engine, Kubernetes, KubeRay, shellcheck, hadolint.
"""

from __future__ import annotations

import copy
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

from sweeps.command_line import parser
from tests.helpers.paths import ROOT
from tests.helpers.schemas import compute_complaints, rayjob_complaints

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


def test_compute_engine_accepts_the_machines() -> None:
    nodes = {name: node["node_config"] for name, node in loaded("gcp.yaml")["available_node_types"].items()}
    assert {name: compute_complaints(node) for name, node in nodes.items()} == {"head": [], "gpu_worker": []}
    head, worker = nodes["head"], nodes["gpu_worker"]
    assert "scheduling" not in head, "a reclaimed head takes the driver with it"
    assert worker["scheduling"]["provisioningModel"] == "SPOT"
    # `ray down` asks for running machines only: one that is merely stopped keeps its disk, and is forgotten.
    assert worker["scheduling"]["instanceTerminationAction"] == "DELETE"
    assert all(disk["autoDelete"] for node in nodes.values() for disk in node["disks"])


@pytest.mark.parametrize(
    "change",
    [
        {"machinetype": "g2-standard-4"},
        {"scheduling": [{"onHostMaintenance": "TERMINATE"}]},
        {"scheduling": {"provisioningModel": "spot"}},
        {"disks": [{"initializeParams": {"diskSize": 60}}]},
        {"disks": {"boot": True}},
    ],
    ids=["field", "list-for-object", "value", "field-of-a-disk", "object-for-list"],
)
def test_compute_engine_would_refuse_other_machines(change: dict[str, Any]) -> None:
    node = loaded("gcp.yaml")["available_node_types"]["gpu_worker"]["node_config"]
    assert len(compute_complaints({**node, **change})) == 1


@pytest.mark.parametrize("name", ["onprem.yaml", "gcp.yaml", "gpu.yaml"])
def test_no_trial_trains_on_the_head_and_calls_need_the_token(name: str) -> None:
    config = loaded(name)
    for commands in STARTS:
        words = shlex.split(config[commands][-1].removesuffix(" || ray stop; }"))
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


def test_kuberay_accepts_the_job() -> None:
    job = loaded("kuberay.yaml")
    assert rayjob_complaints(job) == []
    for misspelt, of in [("minReplica", ("workerGroupSpecs", 0)), ("idleTimeoutSecond", ("autoscalerOptions",))]:
        broken = copy.deepcopy(job)
        part = broken["spec"]["rayClusterSpec"]
        for key in of:
            part = part[key]
        part[misspelt] = part.pop(f"{misspelt}s")
        assert any(f"'{misspelt}' was unexpected" in complaint for complaint in rayjob_complaints(broken))
    broken = copy.deepcopy(job)
    broken["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    (complaint,) = rayjob_complaints(broken)
    assert complaint.endswith("0 is not of type 'string'")


def test_kubernetes_job_starts_a_run_and_continues_its_newest_one(tmp_path: Path) -> None:
    """Its entrypoint, with a `python` that writes down how it is called."""
    entrypoint = loaded("kuberay.yaml")["spec"]["entrypoint"]
    for folder in ("/mnt/sweeps", "/home/sweeps/restoration-sweeps"):
        assert folder in entrypoint
        entrypoint = entrypoint.replace(folder, str(tmp_path / Path(folder).name))
    shell, option, script = shlex.split(entrypoint)
    assert (shell, option) == ("sh", "-c")
    (tmp_path / "shellcheck.sh").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    # Names of runs are times: `ls` sorts them well.
    assert complaints(TOOLS / "shellcheck", "--exclude=SC2012", tmp_path / "shellcheck.sh") == ""

    (tmp_path / "restoration-sweeps").mkdir()
    (tmp_path / "python").write_text('#!/bin/sh\necho "$(basename "$PWD") $*"\n', encoding="utf-8")
    (tmp_path / "python").chmod(0o755)

    def called() -> list[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        ran = subprocess.run([shell, option, script], env=environment, capture_output=True, text=True, check=True)
        assert ran.stderr == ""
        return ran.stdout.split()

    first = called()
    assert first[:4] == ["restoration-sweeps", "run_sweep.py", "--address", "auto"]
    flags = parser().parse_args(first[2:])
    results = tmp_path / "sweeps" / "results"
    assert (flags.space, flags.preset, flags.results) == ("sinsr_loss_ratios", "sinsr-stage1", str(results))
    runs = results / flags.space
    for name in ("20261126-162232", "20261127-080000"):
        (runs / name).mkdir(parents=True)
    (runs / "report").mkdir()
    assert called() == [*first[:4], "--resume", str(runs / "20261127-080000")]


def test_scripts_and_dockerfile_are_clean() -> None:
    assert complaints(TOOLS / "shellcheck", CLUSTER / "slurm.sbatch", *CLUSTER.glob("*.sh")) == ""
    assert complaints(TOOLS / "hadolint", "--no-color", CLUSTER / "Dockerfile") == ""


@pytest.mark.parametrize("flags", [["--results", "/shared"], ["--results=s3://bucket/results"]])
def test_slurm_job_refuses_results_that_a_requeued_job_would_not_find(flags: list[str]) -> None:
    job = ["bash", str(CLUSTER / "slurm.sbatch"), "--space", "lora", *flags]
    ran = subprocess.run(job, capture_output=True, text=True)
    assert ran.returncode == 2 and "set SWEEP_RESULTS=FOLDER instead" in ran.stderr


def test_dockerfile_has_all_code() -> None:
    copied = re.findall(r"^COPY (\S+)", (CLUSTER / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert set(copied) == packages | {"run_sweep.py", "requirements.txt"}


FAKES = {
    # The commands of SLURM, Ray and Python that the job calls: each writes down its arguments.
    "srun": """
        while [ "${1#--}" != "$1" ]; do shift; done
        if [ "$1" = hostname ]; then echo 10.0.0.5 10.1.0.5; exit; fi
        trap 'kill -TERM -- $groups' TERM
        for node in n1 n2; do
            SLURMD_NODENAME=$node setsid "$@" &
            groups="$groups -$!"
        done
        wait; wait
    """,
    "scontrol": 'if [ "$1" = show ]; then echo n1; echo n2; else echo "$@" >> $OUT/scontrol; fi',
    "ray": """
        [ "$1" = start ] || exit 0
        trap 'rm $OUT/$SLURMD_NODENAME; kill $!; exit 143' TERM
        sleep 60 &
        echo "$SLURMD_NODENAME $*" >> $OUT/ray
        touch $OUT/$SLURMD_NODENAME
        wait
    """,
    "python": """
        echo "$@" >> $OUT/python
        while [ "$1" != run_sweep.py ]; do [ -e $OUT/n1 ] && [ -e $OUT/n2 ] && exit; sleep 0.05; done
        mkdir -p $SWEEP_RESULTS/space/20261126-162232
        [ -e $OUT/again ] && exit 0
        trap 'kill $!; exit 130' TERM
        sleep 60 &
        touch $OUT/again
        wait
    """,
}


def test_slurm_job_is_put_back_before_its_time_limit_and_resumes(tmp_path: Path) -> None:
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, text in FAKES.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "OUT": str(tmp_path),
        "SWEEP_RESULTS": str(tmp_path / "results"),
        "SLURM_JOB_ID": "20007",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(CLUSTER / "slurm.sbatch"), "--space", "space", "--data", "with a space"]
    job = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "again").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 130
    assert (tmp_path / "scontrol").read_text() == "requeue 20007\n"
    assert subprocess.run(command, cwd=tmp_path, env=environment, timeout=60, check=False).returncode == 0
    assert (tmp_path / "scontrol").read_text().count("requeue") == 1

    results, address = tmp_path / "results", "10.0.0.5:20007"
    waited = f"-m cluster.wait_for_nodes {address} 2"
    assert (tmp_path / "python").read_text().splitlines() == [
        waited,
        f"run_sweep.py --address {address} --stop-seconds 120 --results {results} --space space --data with a space",
        waited,
        f"run_sweep.py --address {address} --stop-seconds 120 --resume {results}/space/20261126-162232",
    ]
    started = {line.split()[0]: line.split()[2:] for line in (tmp_path / "ray").read_text().splitlines()}
    assert started["n1"][:3] == ["--head", "--node-ip-address=10.0.0.5", "--port=20007"]
    assert started["n2"][0] == f"--address={address}"
    for words in started.values():
        parsed = start.make_context("start", words).params  # parses, does not start
        assert (parsed["num_cpus"], parsed["num_gpus"], parsed["block"]) == (8, 4, True)
        assert (parsed["min_worker_port"], parsed["max_worker_port"]) == (0, 0)


def test_page_says_for_each_kind_of_cluster_what_it_costs_and_how_that_ends() -> None:
    page = (CLUSTER / "README.md").read_text(encoding="utf-8")
    table = page.partition("On all of them:")[0]
    sections = {title: text for title, _, text in (part.partition("\n") for part in page.split("\n## ")[1:])}
    linked = {name.replace("-", " ") for name in re.findall(r"\[below\]\(#(.+?)\)", table)}
    assert {title.lower() for title in sections} | {"trials with several workers"} == linked
    for title, text in sections.items():
        assert text.count("**Costs.**") == 1 and text.count("**Stop paying.**") == 1, title
    assert "gcloud filestore instances delete" in sections["Google Cloud"]  # it outlives `ray down`
    assert "kubectl delete pvc" in sections["Kubernetes"] and "--min-nodes 0" in sections["Kubernetes"]
