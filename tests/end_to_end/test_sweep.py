"""A whole tiny sweep with real Ray and real training; search, early stopping and failed trials."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from PIL import Image
from ray import tune
from ray.tune.experiment import Trial
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import search_spaces
from cluster.small_rates import RATE
from cluster.small_rates import SPACE as SMALL_RATES
from search_spaces import Choice, Float, Int, Point, SearchSpace, When
from sweeps.answering import finish
from sweeps.answering.summary import updated
from sweeps.planning.plan import make_plan
from sweeps.planning.question import Question, resolve
from sweeps.planning.settings import SweepSettings
from sweeps.recording.tables import read_rows
from sweeps.running.ray_cluster import connected, tune_interrupts
from sweeps.running.scheduler import SweepScheduler
from sweeps.running.search import SweepSearch
from sweeps.sweep import start
from sweeps.trial_config import GIVEN, ID, PARAMETERS, SEED
from tests.conftest import OF_METHOD
from tests.helpers.sweep import OF_RATES, SPACE, TINY, only_run, run_sweep, sets, steps, store, trials
from tests.helpers.tensorboard import Page, scalars
from trainables.common.errors import InputError
from trainables.pretrained.weights_file import describe

__all__ = ["store"]
pytestmark = pytest.mark.timeout(900)  # many processes per test, also on busy machines
ONE = {"sampler": "tpe", "workers_per_trial": 1, "gpus_per_worker": 0.0, "max_concurrent": 1}
"""One process per trial, without a GPU, as `resolve` derives from the preset; one trial after the other."""
SPLITS = ("validation", "test")
CONTROLS = ["bicubic", "input_latent", "autoencoder", "teacher_1", "teacher_15"]
TERMS = ["distillation", "inversion", "ground_truth"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, store: Path) -> tuple[Path, str]:
    """A run of the space's three points, a proposed trial and a confirmation, with 12 steps, and its output."""
    results = tmp_path_factory.mktemp("swept") / "results"
    done = run_sweep(
        *("--space", SPACE, "--results", str(results), "--store", str(store), "--perceptual", "st_lpips"),
        *("--trials", "4", "--confirm", "1", "--seeds", "2", "--max-steps", "12", "--seed", "3"),
        *("--max-concurrent", "1", *sets(training__reports=4)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(results), done.stdout + done.stderr


@pytest.mark.slow
class TestWholeSweep:
    def test_files(self, swept: tuple[Path, str]) -> None:
        run, _ = swept
        for name in (
            *("settings.yaml", "leaderboard.parquet", "leaderboard.csv", "history.parquet", "per_image.parquet"),
            *("optuna.journal", "sweep.log", "best/weights.safetensors", "best/settings.json", "best/README.md"),
            *("report/index.html", "report/answer.md", "trials/t000/params.json", "trials/t000/log.txt"),
            *("report/larger/bicubic.png", "report/larger/values.json"),
        ):
            assert (run / name).stat().st_size > 0, name
        record = yaml.safe_load((run / "settings.yaml").read_text())
        assert record["command"]["space"] == SPACE and record["trial"]["training.max_steps"] == 12
        assert set(record["versions"]) >= {"python", "torch", "ray", "optuna"}
        assert list(run.rglob("*.tmp")) == []

    def test_points_run_first_and_finish(self, swept: tuple[Path, str]) -> None:
        rows = [row for _, row in sorted(trials(swept[0]).items())]
        points = search_spaces.load(SPACE).points
        assert [row["label"] for row in rows] == [*(point.label for point in points), ""]
        for row, point in zip(rows, points, strict=False):
            assert {name: row[f"config/{name}"] for name in point.values} == point.values
            assert (row["seed"], row["status"], row["steps"]) == (3, "finished", 12)
        for row in rows[len(points) :]:
            assert row["status"] in ("finished", "stopped") and 0.01 <= row["config/sinsr.inversion"] <= 10

    def test_best_configuration_and_baseline_are_confirmed(self, swept: tuple[Path, str]) -> None:
        run, shown = swept
        rows = trials(run)
        confirmed = trials(run, "confirmation")
        assert sorted(confirmed) == ["c000", "c001", "c002", "c003"]
        assert {(row["status"], row["steps"]) for row in confirmed.values()} == {("finished", 12)}
        others = [row for row in rows.values() if row["status"] == "finished" and row["label"] != "1:1:1"]
        best = min(others, key=lambda row: row["val/st_lpips"])
        for name, of in (("c000", rows["t000"]), ("c001", best), ("c002", rows["t000"]), ("c003", best)):
            row = confirmed[name]
            assert {key: row[key] for key in row if key.startswith("config/")} == {
                key: of[key] for key in row if key.startswith("config/")
            }
            assert row["label"] == of["label"]
        assert len({row["val/psnr"] for row in confirmed.values()}) == 4  # fresh seeds
        assert len({row["seed"] for row in (*confirmed.values(), rows["t000"])}) == 5
        answer = (run / "report" / "answer.md").read_text().splitlines()[2]
        assert "1:1:1" in answer and "such a sweep detects a true difference of" in answer and answer in shown
        kept = json.loads((run / "best" / "settings.json").read_text())
        assert kept["training.seed"] in {row["seed"] for row in confirmed.values()}
        assert "Test means over 4 images" in (run / "best" / "README.md").read_text()

    def test_tables(self, swept: tuple[Path, str]) -> None:
        run, _ = swept
        board = {row["id"]: row for row in read_rows(run / "leaderboard.parquet")}
        assert [name for name, row in board.items() if row["kind"] == "control"] == CONTROLS
        images = read_rows(run / "per_image.parquet")
        for name, row in board.items():
            tested = {"test": 4} if row["kind"] != "trial" else {}
            for split, count in {"validation": 3, **tested}.items():
                own = [image for image in images if image["id"] == name and image["split"] == split]
                assert len(own) == count
                for metric in ("psnr", "psnr_y", "ssim", "st_lpips"):
                    metric = f"{'val' if split == 'validation' else split}/{metric}"
                    assert row[metric] == pytest.approx(sum(image[metric] for image in own) / count, rel=1e-5)
            assert (row["test/psnr"] is None) == (row["kind"] == "trial")
        photographs = {split: {i["image"].split("@")[0] for i in images if i["split"] == split} for split in SPLITS}
        assert not photographs["test"] & photographs["validation"]
        for name, row in (trials(run) | trials(run, "confirmation")).items():
            assert steps(run, name) == list(range(0, row["steps"] + 1, 3))  # from the teacher's weights, at step 0
            assert (run / row["checkpoint"] / "state.pt").exists()
            assert row["busy_seconds"] > 0

    def test_page_of_answers(self, swept: tuple[Path, str], tmp_path: Path) -> None:
        run, _ = swept
        text = updated("", run.parents[1], tmp_path / "answers")
        row = f"| [`{SPACE}`](#{SPACE}): {search_spaces.load(SPACE).question} | "
        assert text.count(row) == 1 and f"answers/{SPACE}.jpg" in text
        assert (tmp_path / "answers" / f"{SPACE}.csv").read_text() == (run / "leaderboard.csv").read_text()
        with Image.open(tmp_path / "answers" / f"{SPACE}.jpg") as sheet:  # two larger pieces, five columns
            assert sheet.size == (5 * 256 + 4 * 6, 24 + 2 * (256 + 24))
        # A page is brought up to date: what a person wrote stays, and so do spaces without a run.
        old = text.replace(row, f"{row}t99 ").replace(f"## {SPACE}\n\n", f"## {SPACE}\n\n**Reading.** Little.\n\n")
        other = "| [`lora`](#lora): Which? | a | b | c | d | e | 1 |\n"
        old = f"# Answers\n\n{old}\n\n## Open\n\n- `{SPACE}`: why?\n- `conditioning`: which?\n"
        old = old.replace(f"| [`{SPACE}`]", f"{other}| [`{SPACE}`]")
        new = updated(old, run.parents[1], tmp_path / "answers")
        assert new.startswith("# Answers\n\n| space") and other in new and "t99" not in new
        assert "**Reading.** Little." in new and f"- `{SPACE}`" not in new and "- `conditioning`: which?" in new
        assert updated(new, run.parents[1], tmp_path / "answers") == new

    def test_tensorboard(self, swept: tuple[Path, str]) -> None:
        run, _ = swept
        page = Page(run / "trials")
        rows = trials(run) | trials(run, "confirmation")
        assert set(page.groups) == {*rows, *CONTROLS}
        for name, row in rows.items():
            assert page.status(name) == "STATUS_SUCCESS"
            shown = page.hparams(name)
            assert (shown["status"], shown["seed"], shown["kind"]) == (row["status"], row["seed"], row["kind"])
            assert shown["sinsr.inversion"] == row["config/sinsr.inversion"]
            assert page.metrics(name)["val/psnr"] == (row["steps"], pytest.approx(row["val/psnr"], rel=1e-6))
            for term in TERMS:
                raw = scalars(run / "trials" / name, f"loss/{term}")
                weighted = scalars(run / "trials" / name, f"weighted/{term}")
                weight = row.get(f"config/sinsr.{term}", 1.0)
                assert [step for step, _ in raw] == [step for step, _ in weighted]
                assert [weight * value for _, value in raw] == pytest.approx([value for _, value in weighted], rel=1e-5)
            for metric in ("val/psnr", "val/psnr_y", "val/ssim", "val/st_lpips"):
                assert [step for step, _ in scalars(run / "trials" / name, metric)] == steps(run, name)
            for used in ("speed/images_per_second", "memory/peak_gb"):
                assert [step for step, _ in scalars(run / "trials" / name, used)] == steps(run, name)[1:]
            events = EventAccumulator(str(run / "trials" / name), size_guidance={"images": 0})
            events.Reload()
            tags = [tag for tag in events.Tags()["images"] if not tag.startswith("test")]
            assert [event.step for event in events.Images(tags[0])] == steps(run, name) and len(tags) == 1
            assert len(events.Tags()["images"]) == (2 if row["kind"] == "confirmation" else 1)

    def test_optuna_loads_the_journal(self, swept: tuple[Path, str]) -> None:
        run, _ = swept
        journal = JournalStorage(JournalFileBackend(str(run / "optuna.journal")))
        study = optuna.load_study(study_name=SPACE, storage=journal)
        expected = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
        rows = trials(run)
        assert {f"t{trial.number:03d}": trial.state for trial in study.trials} == {
            name: expected[row["status"]] for name, row in rows.items()
        }
        for trial in study.get_trials(states=(TrialState.COMPLETE,)):
            row = rows[f"t{trial.number:03d}"]
            assert trial.value == pytest.approx(row["val/st_lpips"])
            assert trial.params == {name: row[f"config/{name}"] for name in trial.params}

    def test_output_and_log(self, swept: tuple[Path, str]) -> None:
        run, shown = swept
        assert "Traceback" not in shown and "Warning" not in shown
        for part in (
            "8 of 8 trials ended",
            "★",
            "teacher_15",
            "1:1:1",
            f"tensorboard --logdir {run}/trials",
            "done",
        ):
            assert part in shown
        log = (run / "sweep.log").read_text()
        assert [line for line in log.splitlines() if line not in shown] == []


def with_rates(**rates: float) -> SearchSpace:
    """The space of a small Pix2Pix with other points: label -> learning rate, up to absurd ones."""
    points = tuple(Point(label, {RATE: rate}) for label, rate in rates.items())
    return dataclasses.replace(SMALL_RATES, points=points, parameters={RATE: Float(1e-6, 1e30, log=True)})


@pytest.mark.slow
def test_diverging_trial_fails_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A space with three learning rates, one of them absurd; runs in this process."""
    space = with_rates(sane=1e-4, absurd=1e30, small=1e-5)
    changes = {"pix2pix": {**OF_RATES, "training.max_steps": 8, "training.reports": 2}}
    places = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    settings = SweepSettings(space.name, "sample", **ONE, perceptual="none", **places)
    assert start(make_plan(Question(settings, space, changes, trials=3))) == 0
    (run,) = (tmp_path / "results" / space.name).iterdir()
    rows = trials(run)
    assert (rows["t000"]["status"], rows["t000"]["steps"], rows["t000"]["error"]) == ("finished", 8, "")
    assert rows["t001"]["status"] == "failed"
    assert rows["t001"]["error"].startswith("loss term '") and " at step " in rows["t001"]["error"]
    assert Page(run / "trials").status("t001") == "STATUS_FAILURE"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_sweep_of_which_half_failed_has_a_winner_and_status_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    space = with_rates(sane=1e-4, absurd=1e30)
    settings = SweepSettings(space.name, "sample", **ONE, perceptual="none", **places)
    changes = {"pix2pix": {**OF_RATES, "training.max_steps": 8, "training.reports": 2}}
    assert start(make_plan(Question(settings, space, changes, trials=2))) == 1
    assert "failed after " in (last := capfd.readouterr().err.strip().splitlines()[-1])
    assert last.endswith("; 1 of 2 trials failed")
    assert (only_run(tmp_path / "results") / "best" / "weights.safetensors").is_file()


@pytest.mark.slow
def test_no_trial_finished(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = {"results": str(tmp_path / "results"), "store": str(tmp_path / "store")}
    space = with_rates(absurd=1e30)
    settings = SweepSettings(space.name, "sample", **ONE, perceptual="none", **places)
    changes = {"pix2pix": {**OF_RATES, "training.max_steps": 8, "training.reports": 2}}
    assert start(make_plan(Question(settings, space, changes, trials=1))) == 1
    (row,) = trials(only_run(tmp_path / "results")).values()
    shown = capfd.readouterr().err
    assert row["status"] == "failed" and row["error"] in shown
    assert "Traceback" not in shown


def _sweep(question: Question) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Runs the sweep in this process; returns its folder and the trials of its leaderboard."""
    assert start(make_plan(question)) == 0
    (run,) = (Path(question.settings.results) / question.space.name).iterdir()
    return run, trials(run)


@pytest.mark.slow
def test_a_question_across_methods(tmp_path: Path) -> None:
    """Each method has its own settings; one parameter exists for one method only."""
    rate, most = "training.learning_rate", "diffusion.max_timestep"
    space = SearchSpace(
        name="across",
        question="Which method?",
        method="pix2pix",
        parameters={
            "method": Choice(("pix2pix", "pixel_diffusion")),
            rate: Float(1e-5, 1e-3, log=True),
            most: When({"method": ("pixel_diffusion",)}, Int(10, 1000)),
        },
        points=(
            Point("pix2pix", {"method": "pix2pix", rate: 1e-3}),
            Point("diffusion", {"method": "pixel_diffusion", rate: 1e-4, most: 500}),
        ),
        objective="val/psnr",
        controls=("bicubic",),
    )
    common = {name: value for name, value in TINY.items() if not name.startswith("sinsr")}
    common |= {"training.max_steps": 4, "training.reports": 2, "training.seed": 1, "perceptual.weight": 0.0}
    changes = {method: {"method": method, **common, **OF_METHOD[method]} for method in space.methods}
    settings = SweepSettings(
        "across", "sample", **ONE, confirm=0, perceptual="none", results=str(tmp_path), store=str(tmp_path / "store")
    )
    run, rows = _sweep(Question(settings, space, changes, trials=6))
    assert [row["status"] for row in rows.values()].count("failed") == 0
    for name, row in rows.items():
        values = {key: row[f"config/{key}"] for key in space.parameters if row[f"config/{key}"] is not None}
        assert list(values) == space.active(values)
        checkpoint = json.loads((run / row["checkpoint"] / "settings.json").read_text())
        assert {key: checkpoint[key] for key in values} == values
        assert describe(run / row["checkpoint"] / "weights.safetensors")[0] == row["config/method"], name
    assert (rows["t000"]["config/method"], rows["t001"]["config/method"]) == ("pix2pix", "pixel_diffusion")
    assert len(list((tmp_path / "store").glob("pairs-train-*"))) == 1


@pytest.mark.slow
def test_evaluation_only_space(first_stage: Path, tmp_path: Path) -> None:
    """All trials restore with the same finished trial; they differ in the searched setting and the noise."""
    settings = SweepSettings(
        "fidelity_weight",
        **ONE,
        trials=6,  # five given, one proposed
        confirm=1,
        seeds=2,
        checkpoint=str(first_stage),
        perceptual="none",
        results=str(tmp_path / "results"),
        store=str(tmp_path / "store"),
    )
    run, rows = _sweep(resolve(settings))
    assert {(row["status"], row["steps"]) for row in rows.values()} == {("finished", 0)}
    board = {row["id"]: row for row in read_rows(run / "leaderboard.parquet")}
    shares = {row["label"]: row["val/psnr"] for row in rows.values()}
    # At weight 1 the output is the autoencoder's reconstruction of the degraded image, without diffusion.
    assert len(set(shares.values())) == len(shares) == 6
    confirmed = trials(run, "confirmation")
    assert {(row["status"], row["steps"]) for row in confirmed.values()} == {("finished", 0)} and len(confirmed) == 4
    assert len({row["test/psnr"] for row in confirmed.values()}) > 2  # a seed is another noise
    assert list(tmp_path.glob("store/latents-train-*")) == [] and board["autoencoder"]["kind"] == "control"
    assert (run / "best" / "weights.safetensors").exists()


SPACE_OF_X = SearchSpace(
    name="x",
    question="Which x?",
    method="sinsr",
    parameters={"x": Float(0.0, 1.0)},
    points=(Point("best", {"x": 0.9}), Point("worst", {"x": 0.1})),
    objective="val/psnr",
)


@pytest.fixture
def local_ray() -> Iterator[int]:
    with connected(SweepSettings("x", **ONE), 100) as concurrent:
        yield concurrent


@pytest.mark.slow
def test_asha_stops_proposed_trials_but_not_points(tmp_path: Path, local_ray: int) -> None:
    """Tune with our search and scheduler on a function; the given points are the best and the worst."""

    def trial(config: dict[str, Any]) -> None:
        value = config[PARAMETERS]["x"] if config[GIVEN] else 0.2 - 0.01 * int(config[ID][1:])
        for step in (2, 4, 6, 8):
            tune.report({"val/psnr": value, "step": step})

    search = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 5, 8, tmp_path / "optuna.journal")
    scheduler = SweepScheduler("val/psnr", "max", 8, 2, 3.0)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"CPU": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search, scheduler=scheduler, num_samples=5, max_concurrent_trials=1, reuse_actors=True
        ),
        run_config=tune.RunConfig(name="trials", storage_path=str(tmp_path), verbose=0),
    )
    with tune_interrupts():
        results = tuner.fit()
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # else there is nothing to restore
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ended = {result.config[ID]: result for result in results if result.config and result.metrics}
    last = {name: result.metrics["step"] for name, result in sorted(ended.items())}
    assert last == {"t000": 8, "t001": 8, "t002": 2, "t003": 2, "t004": 2}
    study = optuna.load_study(
        study_name="x", storage=JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    )
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, *[TrialState.PRUNED] * 3]


def test_rungs_are_filled_from_reports_of_an_earlier_driver() -> None:
    reports = {"t000": 30.0, "t001": 29.0, "t002": 28.0}
    rows = [{"id": "t000", "status": "finished"}, {"id": "t001", "status": "stopped"}]

    def scheduler(reports: dict[str, float]) -> tuple[SweepScheduler, Trial]:
        def of(id: str) -> list[dict[str, Any]]:
            return [{"step": 2, "val/psnr": reports[id]}] if id in reports else []

        made = SweepScheduler("val/psnr", "max", 8, 2, 3.0, rows, of)
        for k in range(2, 4):  # t002 goes on, t003 is new
            trial = Trial("function", stub=True, config={ID: f"t{k:03d}", GIVEN: False})
            made.on_trial_add(None, trial)
        return made, trial

    result = {"step": 2, "val/psnr": 27.0}
    resumed, newest = scheduler(reports)
    assert resumed.on_trial_result(None, newest, result) == "STOP"
    fresh, newest = scheduler({})
    assert fresh.on_trial_result(None, newest, result) == "CONTINUE"


def _rows(run: Path, trials: list[dict[str, Any]], ended: int = 0, value: float = 1.0) -> list[dict[str, Any]]:
    """The leaderboard's rows of proposed trials, of which the first ones have finished."""
    return [
        {
            "id": trial[ID],
            "status": "finished" if k < ended else "interrupted",
            "seed": 5 + trial[SEED],
            "val/psnr": value,
            **{f"config/{name}": found for name, found in trial[PARAMETERS].items()},
        }
        for k, trial in enumerate(trials)
    ]


def test_a_resumed_search_hands_out_what_has_not_ended_and_proposes_the_same(tmp_path: Path) -> None:
    """Two drivers see the same results; one of them was interrupted. The journal of the other one is damaged."""
    whole = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, tmp_path / "whole.journal")
    first = [whole.suggest(f"trial{k}") for k in range(4)]
    for k in range(2):
        whole.on_trial_complete(f"trial{k}", {"val/psnr": 1.0, "step": 8})

    journal = tmp_path / "resumed.journal"
    journal.write_text("{garbled")
    (tmp_path / "resumed.journal.lock").symlink_to(journal)  # of a killed driver
    rows = _rows(tmp_path, first, ended=2)
    resumed = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, journal, rows=rows, first_seed=5)
    assert [resumed.suggest(f"again{k}") for k in range(2)] == first[2:]
    assert [resumed.suggest(f"next{k}") for k in range(2)] == [whole.suggest(f"next{k}") for k in range(2)]
    study = optuna.load_study(study_name="x", storage=JournalStorage(JournalFileBackend(str(journal))))
    states = [trial.state for trial in study.trials]
    assert states == [*[TrialState.COMPLETE] * 2, *[TrialState.RUNNING] * 4]


def test_trials_of_a_lost_record_are_proposed_again(tmp_path: Path) -> None:
    search = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, tmp_path / "optuna.journal")
    first = [search.suggest(f"trial{k}") for k in range(4)]
    rows = [row for row in _rows(tmp_path, first, ended=4) if row["id"] not in ("t001", "t003")]
    resumed = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, tmp_path / "optuna.journal", rows=rows, first_seed=5)
    again = [resumed.suggest("a"), resumed.suggest("b")]
    assert again[0] == first[1]  # a point of the space
    assert [trial[ID] for trial in again] == ["t001", "t003"]


def test_failed_trials_are_tried_again_unless_they_diverged(tmp_path: Path) -> None:
    search = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, tmp_path / "optuna.journal")
    first = [search.suggest(f"trial{k}") for k in range(3)]
    rows = _rows(tmp_path, first)
    for row in rows[:2]:
        row["status"] = "failed"
    rows[0]["diverged"] = True
    resumed = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, tmp_path / "optuna.journal", rows=rows, first_seed=5)
    assert [resumed.suggest("a"), resumed.suggest("b")] == first[1:]
    assert resumed.suggest("c")[ID] == "t003"


def test_stopped_trials_reach_optuna_with_their_last_value(tmp_path: Path) -> None:
    journal = tmp_path / "optuna.journal"
    search = SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, journal)
    search.suggest("a")
    search.on_trial_result("a", {"val/psnr": 3.0, "step": 2})
    search.on_trial_complete("a", {"val/psnr": 4.0, "step": 4})  # Tune tells the last result only here
    (trial,) = optuna.load_study(study_name="x", storage=JournalStorage(JournalFileBackend(str(journal)))).trials
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.PRUNED, 4.0, {2: 3.0, 4: 4.0})
    assert trial.user_attrs == {"id": "t000", "label": "best", "seed": 0, "val/psnr": 4.0}


def test_parameters_of_another_space_are_refused(tmp_path: Path) -> None:
    rows = [{"id": "t000", "status": "finished", "seed": 5, "val/psnr": 1.0, "config/x": 9.0}]
    with pytest.raises(InputError, match=r"t000: its parameters do not belong to the space x"):
        SweepSearch(SPACE_OF_X, "val/psnr", "max", 0, 8, 8, tmp_path / "optuna.journal", rows=rows, first_seed=5)


CONDITIONAL = SearchSpace(
    name="x",
    question="Which a, and which b where there is one?",
    method="sinsr",
    parameters={"a": Choice(("p", "q", "r")), "b": When({"a": ("q", "r")}, Float(0.0, 1.0))},
    points=(Point("p", {"a": "p"}), Point("q", {"a": "q", "b": 0.5})),
    objective="val/psnr",
)


def test_resumed_trials_keep_their_conditional_parameters(tmp_path: Path) -> None:
    """Ten trials have ended, so TPE proposes the next ones."""
    search = SweepSearch(CONDITIONAL, "val/psnr", "max", 0, 20, 8, tmp_path / "optuna.journal")
    known: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for k in range(10):
        known.append(search.suggest(f"trial{k}"))
        value = {"p": 0.0, "q": 1.0, "r": 0.5}[known[-1][PARAMETERS]["a"]] - known[-1][PARAMETERS].get("b", 0.0)
        search.on_trial_complete(f"trial{k}", {"val/psnr": value, "step": 8})
        rows += _rows(tmp_path, known[-1:], ended=1, value=value)
    running = [search.suggest(name) for name in ("first", "second", "third")]
    rows += _rows(tmp_path, running)
    for row in rows:
        row.setdefault("config/b", None)  # as a table has it

    resumed = SweepSearch(CONDITIONAL, "val/psnr", "max", 0, 20, 8, tmp_path / "again.journal", rows=rows, first_seed=5)
    assert [resumed.suggest(name) for name in ("other", "names", "now")] == running
    assert resumed.suggest("next") == search.suggest("next")
    for row in (*known, *running):
        assert list(row[PARAMETERS]) == CONDITIONAL.active(row[PARAMETERS])
    assert {len(row[PARAMETERS]) for row in known[2:]} == {1, 2}


def test_repeated_proposal_gets_another_seed(tmp_path: Path) -> None:
    """The same trial twice would look like two seeds with equal results."""
    space = SearchSpace(
        name="x",
        question="Which of two?",
        method="sinsr",
        parameters={"a": Choice(("p", "q"))},
        points=(Point("p", {"a": "p"}), Point("q", {"a": "q"})),
        objective="val/psnr",
    )
    search = SweepSearch(space, "val/psnr", "max", 0, 9, 8, tmp_path / "optuna.journal")
    tried = [search.suggest(f"trial{k}") for k in range(9)]
    seeds = {value: [trial[SEED] for trial in tried if trial[PARAMETERS]["a"] == value] for value in ("p", "q")}
    assert len(seeds["p"]) >= 2 and len(seeds["q"]) >= 1
    assert all(found == list(range(len(found))) for found in seeds.values())


def test_resume_line_is_quoted_for_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run_sweep.py", "--space", "x"])
    line = finish.resume_line(tmp_path / "a run", SweepSettings("x"))
    assert line.endswith(f"run_sweep.py --resume '{tmp_path}/a run'")
    assert "python" in line.split()[0]
