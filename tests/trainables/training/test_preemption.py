"""Notices that a machine is taken back, and the checkpoint that a trial then writes."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.helpers.loop import METRICS, Recorder, assert_same, run, state_of
from tests.helpers.metadata import Metadata, metadata_server
from trainables.data.prepared import Prepared
from trainables.settings import TrialSettings, override
from trainables.training.loop import World, train
from trainables.training.preemption import AWS, Google, Notice, this_cloud
from trainables.training.reporting import MachineLeaving, Report
from trainables.training.stop_request import StopRequest


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metadata]:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # not to be used
    with metadata_server() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield server


def test_aws_says_when_it_takes_a_spot_machine(metadata: Metadata) -> None:
    cloud = this_cloud()
    assert isinstance(cloud, AWS) and cloud.notice() is None
    metadata.notice, metadata.token = True, "second"  # the first one has expired
    at = datetime(2026, 11, 26, 8, 22, tzinfo=UTC).timestamp()
    assert cloud.notice() == Notice("AWS will terminate this spot machine", at)


def test_google_says_when_it_preempts_a_machine(metadata: Metadata) -> None:
    metadata.clouds = {"google"}
    cloud = this_cloud()
    assert isinstance(cloud, Google) and cloud.notice() is None
    metadata.notice = True
    notice = cloud.notice()
    assert notice is not None and 20 < notice.deadline - time.time() <= 30


def test_a_machine_of_no_cloud_is_not_asked_again(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata.clouds = set()
    assert this_cloud() is None
    metadata.clouds = {"aws"}
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert this_cloud() is None


def test_trial_that_leaves_its_machine_repeats_no_step(
    small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """It trains 6 steps with reports at 3 and 6, and leaves after 4."""
    undisturbed = run(small, prepared, tmp_path / "undisturbed")
    written: list[Report] = []
    asked = iter(range(100))

    def report(row: Report, write: Callable[[Path], None]) -> None:
        written.append(row)
        folder = tmp_path / "left" / str(row.step if row.reached is None else row.reached)
        folder.mkdir(parents=True)
        write(folder)

    with pytest.raises(MachineLeaving, match="at step 4"):
        train(small, prepared, METRICS, World(), report, leaving=lambda: next(asked) >= 4)
    assert [(row.step, row.reached) for row in written] == [(3, None), (3, 4)]
    second = run(small, prepared, tmp_path / "second", tmp_path / "left" / "4")
    assert [(row.step, row.repeated) for row in second.reports] == [(3, True), (6, False)]
    assert second.reports[0].metrics == written[0].metrics
    assert_same(state_of(tmp_path / "undisturbed" / "6"), state_of(tmp_path / "second" / "6"))
    assert second.reports[1].metrics["val/psnr"] == undisturbed.reports[1].metrics["val/psnr"]


def test_checkpoints_between_reports_change_nothing(small: TrialSettings, prepared: Prepared, tmp_path: Path) -> None:
    """One after each step without a report. It trains 6 steps with reports at 3 and 6."""
    run(small, prepared, tmp_path / "undisturbed")
    often = override(small, {"training.checkpoint_minutes": 1e-6})
    disturbed = run(often, prepared, tmp_path / "disturbed")
    assert [(row.step, row.reached) for row in disturbed.starts] == [(0, 1), (0, 2)]
    assert [(row.step, row.reached) for row in disturbed.reports] == [(3, None), (3, 4), (3, 5), (6, None)]
    second = run(often, prepared, tmp_path / "second", tmp_path / "disturbed" / "5")
    assert [(row.step, row.reached, row.repeated) for row in second.reports] == [(3, None, True), (6, None, False)]
    for other in ("disturbed", "second"):
        assert_same(state_of(tmp_path / "undisturbed" / "6"), state_of(tmp_path / other / "6"))


def test_trial_of_a_sweep_that_stops_writes_a_checkpoint(
    small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """It is asked after 4 steps of 6, with reports at 3 and 6; it answers once and trains on until it is ended."""
    run(small, prepared, tmp_path / "undisturbed")
    asked, answers, recorder, steps = threading.Event(), [], Recorder(tmp_path / "asked"), itertools.count()

    def reaches_step_four() -> bool:
        if next(steps) == 4:
            asked.set()
            while not stop.wants_checkpoint():
                time.sleep(0.01)
        return False

    with StopRequest(asked.is_set, lambda: answers.append((tmp_path / "asked" / "4").exists())) as stop:
        train(small, prepared, METRICS, World(), recorder, leaving=reaches_step_four, stop=stop)
    assert answers == [True]
    assert [(row.step, row.reached) for row in recorder.reports] == [(3, None), (3, 4), (6, None)]
    second = run(small, prepared, tmp_path / "second", tmp_path / "asked" / "4")
    assert [(row.step, row.repeated) for row in second.reports] == [(3, True), (6, False)]
    for other in ("asked", "second"):
        assert_same(state_of(tmp_path / "undisturbed" / "6"), state_of(tmp_path / other / "6"))


def test_trial_of_a_sweep_that_stops_answers_at_once_if_it_has_nothing_to_write(
    small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """It is asked while it continues at step 3."""
    first = run(small, prepared, tmp_path / "first")
    answered, recorder = threading.Event(), Recorder(tmp_path / "second")
    with StopRequest(lambda: True, answered.set) as stop:
        assert answered.wait(60) and not stop.wants_checkpoint()
        train(small, prepared, METRICS, World(), recorder, tmp_path / "first" / "3", stop=stop)
    assert [(row.step, row.reached) for row in recorder.reports] == [(3, None), (6, None)]
    assert recorder.reports[1].metrics["val/psnr"] == first.reports[1].metrics["val/psnr"]


def test_trial_that_leaves_before_its_first_report_continues(
    small: TrialSettings, prepared: Prepared, tmp_path: Path
) -> None:
    """It trains 6 steps with reports at 3 and 6, and leaves after 2."""
    run(small, prepared, tmp_path / "undisturbed")
    asked, first = iter(range(100)), Recorder(tmp_path / "left")
    with pytest.raises(MachineLeaving, match="at step 2"):
        train(small, prepared, METRICS, World(), first, leaving=lambda: next(asked) >= 2)
    second = run(small, prepared, tmp_path / "second", tmp_path / "left" / "2")
    assert [(row.step, row.repeated) for row in second.reports] == [(3, False), (6, False)]
    assert_same(state_of(tmp_path / "undisturbed" / "6"), state_of(tmp_path / "second" / "6"))


def test_trial_that_leaves_before_its_first_step_writes_nothing(small: TrialSettings, prepared: Prepared) -> None:
    recorder = Recorder()
    with pytest.raises(MachineLeaving, match="at step 0"):
        train(small, prepared, METRICS, World(), recorder, leaving=lambda: True)
    assert not recorder.reports
