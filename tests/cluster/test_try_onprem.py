"""cluster/try_onprem.sh: `ray up` on hosts in namespaces of this machine, and a sweep that loses two of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster import try_onprem
from tests.helpers.paths import ROOT

SCRIPT = ROOT / "cluster" / "try_onprem.sh"
TOOLS = ("ip", "nsenter", "rsync", "setpriv", "ssh", "sshd", "unshare")


@pytest.fixture
def hosts() -> None:
    """Skips the test where namespaces cannot be hosts."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces")
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if missing := [tool for tool in TOOLS if not shutil.which(tool, path=path)]:
        pytest.skip(f"needs {', '.join(missing)} (iproute2, openssh-server, rsync, util-linux)")
    made = subprocess.run(["unshare", "--mount", "--pid", "--net", "--uts", "--fork", "true"], capture_output=True)
    if made.returncode:
        pytest.skip(f"this machine does not allow namespaces: {made.stderr.decode().strip()}")


def left(folder: Path) -> list[str]:
    """The processes that name this folder: those of the hosts all do, the nodes of Ray through their session."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if str(folder) in command and process.pid != os.getpid():
            found.append(command)
    return found


def links() -> str:
    return subprocess.run(["ip", "-oneline", "link"], capture_output=True, text=True, check=True).stdout


def started(folder: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "TMPDIR": str(folder)}
    return subprocess.Popen(
        ["bash", str(SCRIPT), *flags],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)  # 260 s of CPU: four nodes of Ray, and some fifteen processes that import torch
@pytest.mark.usefixtures("hosts")
def test_sweep_survives_a_host_that_is_cut_off_and_one_without_power(tmp_path: Path) -> None:
    before = links()
    script = started(tmp_path, "--keep", str(tmp_path / "kept"))
    try:
        output, _ = script.communicate(timeout=1100)
    finally:
        script.kill()  # ends all that it started
    assert script.returncode == 0, output
    assert "its network is cut" in output and "its power is cut" in output and "passed" in output
    assert left(tmp_path) == [] and links() == before
    log = (tmp_path / "kept" / "sweep.log").read_text(encoding="utf-8")
    assert log.count("Its trials continue from their checkpoints") == 2 and "Traceback" not in log


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_interrupted_script_leaves_nothing(tmp_path: Path, number: signal.Signals, status: int) -> None:
    before = links()
    script = started(tmp_path)
    try:
        assert script.stdout is not None
        assert "hosts are up" in script.stdout.readline()
        assert left(tmp_path)
        script.send_signal(number)
        assert script.wait(20) == status
    finally:
        script.kill()
        script.communicate()
    deadline = time.monotonic() + 20  # nobody waits for them after a `kill -9`
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left(tmp_path) == [] and links() == before
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []


def test_script_refuses_other_flags() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "--keap", "x"], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "try_onprem.sh: usage: try_onprem.sh [--keep FOLDER]\n"


def test_configuration_is_onprem_yaml_with_other_addresses(tmp_path: Path) -> None:
    file = tmp_path / "onprem.yaml"
    try_onprem.write_config(file, "10.77.0.10", ["10.77.0.11", "10.77.0.12"])
    config = yaml.safe_load(file.read_text())
    validate_config(prepare_config(config))
    config = yaml.safe_load(file.read_text())
    assert config["provider"]["head_ip"] == "10.77.0.10" and config["max_workers"] == 2
    original = yaml.safe_load((ROOT / "cluster" / "onprem.yaml").read_text())
    changed = {"provider", "auth", "min_workers", "max_workers", "head_start_ray_commands", "worker_start_ray_commands"}
    assert {name for name in original if config[name] != original[name]} == changed
    (_, start), (_, earlier) = config["worker_start_ray_commands"], original["worker_start_ray_commands"]
    assert start.replace(" --object-store-memory=100000000 --num-cpus=1", "") == earlier


LOG = """
19:12:19  t000 starts 1:1:1
19:12:27  t000 step 4/24  psnr 25.24  1:1:1, 1.95 M parameters train
19:12:29  t000 step 8/24  psnr 25.24  1:1:1
19:14:00  t000 starts again: 1:1:1
19:14:02  t000 continues at step 4
19:14:14  t000 finished at step 24
"""


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda log: log, []),
        (
            lambda log: log.replace("continues at step 4", "starts over at step 0"),
            ["t000 had reported step 8 and starts over at step 0"],
        ),
        (
            lambda log: log.replace("step 8/24", "step 12/24"),
            ["t000 had reported step 12 and continues at step 4"],
        ),
        (lambda log: log + "19:15:00  t000 starts again: 1:1:1\n", ["t000 had finished and was trained again"]),
    ],
    ids=["one interval", "from the start", "two intervals", "finished"],
)
def test_repeated_work_is_found(change: Callable[[str], str], found: list[str]) -> None:
    assert try_onprem.repeated("t000", change(LOG), 4) == found


def test_other_numbers_are_found() -> None:
    expected = {0: {"val/psnr": 25.5}, 4: {"val/psnr": 25.25, "train/step_seconds": 0.2}}
    same = {0: {"val/psnr": 25.5}, 4: {"val/psnr": 25.25, "train/step_seconds": 0.9}}
    assert try_onprem.different("t000", same, expected) == []
    other = {0: {"val/psnr": 25.5}, 4: {"val/psnr": 25.250000001}}
    assert try_onprem.different("t000", other, expected) == [
        "t000, step 4: val/psnr is 25.250000001, undisturbed 25.25"
    ]
    assert try_onprem.different("t000", {0: {"val/psnr": 25.5}}, expected) == [
        "t000: reports at steps [0], undisturbed at [0, 4]"
    ]
