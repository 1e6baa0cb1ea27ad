"""Two workers per trial: gloo and DistributedDataParallel on two cores, through Train's worker groups."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from cluster.try_onprem import trained_alone
from sweeps.planning.settings import SweepSettings
from sweeps.recording.tables import read_rows
from sweeps.running.ray_cluster import connected
from sweeps.running.scheduler import SweepScheduler
from sweeps.trial_config import GIVEN, ID
from tests.conftest import finish
from tests.helpers.sweep import light, light_trial, only_run, sweeps, trials
from trainables.common.devices import FAKE
from trainables.data.prepare import make_stores, prepare
from trainables.data.stages.needed import needed_stages
from trainables.methods.build import method_class
from trainables.settings import override
from trainables.training.job import Job, Workers
from trainables.training.launch import launch, trial_resources

__all__ = ["sweeps"]
pytestmark = pytest.mark.timeout(900)  # each test starts many processes, on machines with other load


@pytest.mark.slow
def test_worker_group_reproduces_one_worker_and_resumes(
    tmp_path: Path, sweeps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On GPUs that are declared and do not exist: Ray places a worker on each, and CPUs compute."""
    monkeypatch.setenv(FAKE, "2")
    store, finished = tmp_path / "store", tmp_path / "finished"
    start = light_trial({"training.max_steps": 1, "training.warmup_steps": 0})  # measured before the first step
    finished.mkdir()
    finish(start, prepare(start, store, method_class(start.method).columns(start)), finished)
    first = sweeps(
        *light(tmp_path / "results", store, training__reports=4, checkpoint=finished),
        *("--trials", "1", "--confirm", "0", "--max-steps", "80", "--max-concurrent", "1"),
        *("--workers-per-trial", "2", "--gpus-per-worker", "1"),
    )
    first.wait_for("t000 step 40/80")
    first.terminate()
    assert first.wait() == 130
    assert "Traceback" not in first.text
    run = only_run(tmp_path / "results")
    assert trials(run)["t000"]["status"] == "interrupted"
    assert "1 at once, each on 2 workers of 1 CPU and 1 GPU" in first.text
    second = sweeps("--resume", str(run))
    assert second.wait() == 0, second.text
    assert "t000 continues at step" in second.text and "t000 step 20/80" not in second.text

    assert {name: row["status"] for name, row in trials(run).items()} == {"t000": "finished"}
    assert (run / "best" / "weights.safetensors").exists()
    for log in ("log.txt", "log-1.txt"):  # of both workers, from both drivers
        text = (run / "trials" / "t000" / log).read_text(encoding="utf-8")
        assert text.count(" UTC: starts on host ") == 2 and "Reporting training result" not in text
    rows = {row["step"]: row for row in read_rows(run / "history.parquet") if row["id"] == "t000"}
    expected = trained_alone(run, [trials(run)["t000"]], store)["t000"]
    assert list(rows) == list(expected) == [0, 20, 40, 60, 80]
    heard = 0
    for step, values in expected.items():
        compared = {n: v for n, v in values.items() if n.startswith(("loss/", "weighted/", "val/"))}
        known = {name: rows[step][name] for name in compared if rows[step][name] is not None}
        for name, value in known.items():
            tolerance = 1e-3 if name.startswith("val/ssim") else 1e-4  # differences grow with the steps
            assert value == pytest.approx(compared[name], rel=tolerance), (step, name)
        heard += len(compared) == len(known)
    # After a signal during a report, a group's driver may have only its metrics, not its losses.
    assert heard >= len(expected) - 1


@ray.remote(num_cpus=0)
class Reserving:
    """Reserves all CPUs and never frees them."""

    def reserve(self) -> None:
        ray.get(ray.util.placement_group([{"CPU": 1}] * int(ray.cluster_resources()["CPU"])).ready())


def wait_for_all_cpus() -> None:
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


@pytest.mark.slow
def test_stopped_groups_release_their_cpus(tmp_path: Path) -> None:
    """ASHA stops a group after its first report; the next one gets its CPUs, and at the end all are free again."""
    rates = {"t000": 1e-4, "t001": 1e-5}
    workers = Workers(count=2)
    common = light_trial({"training.max_steps": 6, "training.reports": 3})
    stages = tuple(needed_stages(common, tmp_path / "store", method_class(common.method).columns(common)))
    make_stores(common, stages)

    def trial(config: dict[str, Any]) -> None:
        settings = override(common, {"training.learning_rate": rates[config[ID]]})
        folder = tmp_path / f"group{config[ID]}"
        launch(Job(settings, stages, ("val/psnr",), workers, str(folder), str(folder)))

    with connected(SweepSettings("x", workers_per_trial=2, gpus_per_worker=0), 2) as concurrent:
        assert concurrent == 1
        # By learning rate, so that ASHA's choice does not depend on the training.
        scheduler = SweepScheduler("train/learning_rate", "max", 6, 2, 3.0)
        ended = tune.Tuner(
            tune.with_resources(trial, trial_resources(workers)),
            param_space={ID: tune.grid_search([*rates]), GIVEN: False},
            tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1),
            run_config=tune.RunConfig(name="trials", storage_path=str(tmp_path), verbose=0),
        ).fit()
        assert {result.config[ID]: result.metrics["step"] for result in ended} == {"t000": 6, "t001": 2}
        wait_for_all_cpus()
        # Train leaves the resources of a group that did not start with its controller, an actor that ends.
        controller = Reserving.remote()
        ray.get(controller.reserve.remote())
        assert "CPU" not in ray.available_resources()
        ray.kill(controller)
        wait_for_all_cpus()


@pytest.mark.slow
def test_group_that_cannot_start_is_tried_again(tmp_path: Path, sweeps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers cannot connect. Each try needs all CPUs, so the next one starts only if the last one has freed them;
    a proxy of this machine must not get the questions that Train asks for that.
    """
    for name, value in {"GLOO_SOCKET_IFNAME": "nowhere0", "http_proxy": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    sweep = sweeps(
        *light(tmp_path / "results", tmp_path / "store", training__reports=1),
        *("--trials", "1", "--confirm", "0", "--max-steps", "4", "--workers-per-trial", "2"),
    )
    sweep.wait_for("t000 starts again")
    assert sweep.seen(r"t000 failed \(RuntimeError: .*: nowhere0\) after step 0") == 1
    sweep.interrupt()
    assert sweep.wait() == 130
    assert "Traceback" not in sweep.text
