"""The end of a sweep: leaderboard, answer, the winner's weights, and the paths of all results."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from sweeps.answering.comparison import Answer, answer, baseline_trials
from sweeps.answering.larger import LARGER, restore_larger
from sweeps.answering.leaderboard import format_leaderboard, to_markdown
from sweeps.answering.pictures import columns
from sweeps.answering.remarks import (
    at_the_edge,
    best_at_the_start,
    criteria_met,
    longer_training,
    seeds_without_effect,
    shares_of_the_loss,
    worse_than_the_start,
)
from sweeps.answering.report import write_sweep_report
from sweeps.answering.several import of_several
from sweeps.answering.view import View
from sweeps.planning.objectives import feasible
from sweeps.planning.plan import Plan
from sweeps.planning.run_bucket import place_of
from sweeps.planning.run_settings import UNCONFIRMED, read_record, write_record
from sweeps.planning.settings import SweepSettings
from sweeps.recording.progress import logger
from sweeps.recording.tables import RunTables, TableRow
from sweeps.trial_config import CONFIRMATION, TRIAL
from trainables.common.command import ExitStatus
from trainables.common.locations import locate, shown
from trainables.common.paths import ROOT, is_uri, replace_folder
from trainables.common.version import PROJECT
from trainables.metrics.names import test_name
from trainables.pretrained.finished_trial import SETTINGS, WEIGHTS, write_checksums
from trainables.settings import TrialSettings, flatten
from trainables.settings.methods import METHODS
from trainables.settings.roles import WEIGHT_PATHS

_WIDTH = 122
MORE_TIME = "1h"  # an example

Newest = Callable[[str, tuple[str, ...]], tuple[Path | None, list[str]]]
"""(trial, names of files) -> its newest whole checkpoint, with these files; and a line for each damaged one."""


def finish(
    plan: Plan, folder: Path, newest: Newest, left: int, searched: int, again: int = 0, over: bool = False
) -> int:
    """Compares the trials so far and writes the answer; returns the exit status.

    Args:
        newest: finds the winner's weights.
        left: trials that this command has not started.
        searched: trials of the search, fewer than planned if the time budget ended it.
        again: how many of those left an earlier command has started.
        over: whether the time budget is used up. Then the trials so far must do for the answer.
    """
    tables = RunTables(folder).load()
    rows = tables.leaderboard
    trials = [row for row in rows if row["kind"] != "control"]
    baseline_ids = baseline_trials(rows)
    unfinished = [row for row in trials if row["status"] in ("running", "interrupted")]
    expected = len(trials) + left - again
    whole = not unfinished and not left
    answers_now = whole or over
    result = None
    if baseline_ids:
        why = _unconfirmed(plan, rows, left, searched, over)
        compared = {row["id"] for row in rows if row["kind"] != TRIAL}
        about, count = (rows, tables.images_of(compared)), len(plan.objectives)
        answers = [
            answer(*about, one.metric, baseline_ids, one.direction, why, count, plan.constraints)
            for one in plan.objectives
        ]
        result, *others = answers
        verdict, *numbers = result.sentences
        numbers = [*of_several(plan.objectives, plan.constraints, rows, others), *numbers]
        result = replace(result, sentences=(verdict, *_warnings(plan, tables, result), *numbers))
        training = plan.question.trial.training
        remarks = longer_training(tables.history, result.baseline_ids, plan.objective, training)
        remarks += seeds_without_effect(rows, test_name(plan.objective))
        remarks += shares_of_the_loss(tables.history, result.baseline_ids, result.baseline_name)
        criteria = plan.question.space.criteria
        remarks += criteria_met(criteria, rows, result.baseline_ids, result.winner_id, result.winner_name)
        result = replace(result, sentences=(*result.sentences, *remarks))
        baseline_ids = list(result.baseline_ids)
    _show(plan, rows, baseline_ids, result)
    ended = f"{len(trials) - len(unfinished)} of {expected} trials ended"
    winner = next((row for row in rows if answers_now and result and row["id"] == result.winner_id), None)
    why = "The time budget is over" if over else "Interrupted"
    going_on = resume_line(folder, plan.question.settings, over)
    kept = result is not None and winner is not None and _keep_best(folder, newest, winner, plan, result, going_on)
    status = ended if whole else f"{why}: {ended}. Continue with: {going_on}"
    if kept and result is not None:
        shown = [found[0] for _, found in columns(View.of(rows, result), LARGER, baseline_ids) if found]
        steps = {row["id"]: row["steps"] for row in shown if row["kind"] != "control"}
        restore_larger(plan, folder, steps, lambda id: newest(id, (WEIGHTS, SETTINGS))[0])
    if answers_now and result is not None:
        write_record(folder, {**read_record(folder), UNCONFIRMED: result.unconfirmed})
    page = write_sweep_report(plan, folder, tables, baseline_ids, result, status)
    if not whole:
        logger.info("%s with %s", why.lower(), ended)
        logger.info("continue with: %s", going_on)
    if not answers_now:
        return ExitStatus.INTERRUPTED
    if result is None or winner is None:
        why = "no answer" if any(row["status"] == "finished" for row in trials) else "no trial finished"
        logger.info("%s: %s", why, "; ".join(sorted({row["error"] for row in trials if row["error"]})))
        return ExitStatus.FAILED
    _write_answer(folder, plan, rows, baseline_ids, result)
    if kept:
        logger.info("winner's weights  %s", folder / "best" / WEIGHTS)
    logger.info("tables            %s", folder / "leaderboard.csv")
    logger.info("report            %s", page)
    logger.info("%s", tensorboard_line(folder))
    failed = [row for row in trials if row["status"] == "failed"]
    for reason in sorted({row["error"] for row in failed}):
        logger.info("failed            %s", reason)
    return ExitStatus.DONE if kept and 2 * len(failed) < len(trials) else ExitStatus.FAILED


def _unconfirmed(plan: Plan, rows: list[TableRow], left: int, searched: int, no_time: bool) -> str:
    """Why nothing may be called better, before any value is looked at; empty if the confirmation is whole."""
    if not plan.confirms:
        return plan.no_confirmation
    over = [row for row in rows if row["status"] not in ("running", "interrupted")]
    if sum(row["kind"] == TRIAL for row in over) < searched:
        return "the search has not finished"
    confirmed = [row for row in rows if row["kind"] == CONFIRMATION]
    short = [row for row in confirmed if row["status"] == "finished" and row["steps"] < plan.question.confirm_steps]
    if (left and (confirmed or not no_time)) or short or any(row not in over for row in confirmed):
        return "the confirmation has not finished"
    if confirmed:
        return ""
    constraints, baseline_ids = plan.constraints, baseline_trials(rows)
    others = [
        row for row in rows if row["kind"] == TRIAL and row["status"] == "finished" and row["id"] not in baseline_ids
    ]
    if others and not any(feasible(constraints, row) for row in others):
        return f"no other configuration that finished meets {' and '.join(map(str, constraints))}"
    if others:
        return "the time budget left no time for the confirmation"
    return "no other configuration finished, so there was nothing to confirm"


def _warnings(plan: Plan, tables: RunTables, result: Answer) -> list[str]:
    """What a reader must know before the numbers: training did harm, or the winner is at the edge of the space."""
    rows, history, metric = tables.leaderboard, tables.history, plan.objective
    if not result.winner_ids:
        return []

    def harmed(ids: Sequence[str], name: str) -> list[str]:
        if plan.question.trial.training.keeps_best:
            return best_at_the_start([row for row in rows if row["id"] in ids], name)
        return worse_than_the_start(history, ids, metric, name)

    baseline = f"the baseline, {result.baseline_name},"
    if result.winner_id in result.baseline_ids:
        found = harmed(result.winner_ids, baseline)
    else:
        found = harmed(result.winner_ids, result.winner_name) + harmed(result.baseline_ids, baseline)
    winner = next(row for row in rows if row["id"] == result.winner_id)
    return found + at_the_edge(plan.question.space.distributions, winner, result.winner_name)


def resume_line(folder: Path, settings: SweepSettings, over: bool = False) -> str:
    """The command that continues the run, for the current folder.

    Args:
        folder: of the run, or the working copy of one in a bucket.
        settings: the run's. The address of its Ray cluster and the bucket of its prepared data are named, because they
            are never taken from a run's folder.
        over: whether its time budget is used up, so that it needs more.
    """
    cluster = ("--address", settings.address) if settings.address else ()
    store = ("--store", settings.store) if is_uri(settings.store) else ()
    place = (place_of(folder), *cluster, *store, *(("--time-budget", MORE_TIME) if over else ()))
    script = Path(sys.argv[0])
    if script.name == PROJECT:  # the console script
        on_path = shutil.which(PROJECT) == str(script)
        return shlex.join([PROJECT if on_path else str(script), "run", "--resume", *place])
    own = ROOT / "run_sweep.py"
    if script.name != own.name:  # a program or notebook that uses `sweeps.run`
        script = own
    return shlex.join([str(_for_the_shell(Path(sys.executable))), str(_for_the_shell(script)), "--resume", *place])


def _for_the_shell(path: Path) -> Path:
    """Relative to the current folder if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def tensorboard_line(folder: Path) -> str:
    """The command that shows the run's curves.

    Those in an S3 bucket are read there, so that it works on every machine. TensorBoard needs boto3 for that. It would
    need other packages for gs://, so there the copy on this machine is named.
    """
    place = locate(place_of(folder))
    store = urlsplit(place.store)
    if store.scheme != "s3":
        return shlex.join(["tensorboard", "--logdir", str(folder / "trials")])
    options = dict(parse_qsl(store.query))
    server = options.get("endpoint_override", "")
    url = server if not server or "://" in server else f"{options.get('scheme', 'https')}://{server}"
    command = ["tensorboard", "--logdir", f"{place}/trials"]
    line = shlex.join([*([f"S3_ENDPOINT={url}"] if url else []), *command])
    return line if find_spec("boto3") else f"{line}  (after: pip install boto3)"


def _show(plan: Plan, rows: list[TableRow], baseline_ids: list[str], result: Answer | None) -> None:
    winner = result.winner_id if result else None
    table = format_leaderboard(rows, plan.objective, plan.direction, baseline_ids, winner, _WIDTH)
    for line in ["", *table.splitlines(), "", *(result.sentences if result else ()), ""]:
        logger.info("%s", line)


def _keep_best(folder: Path, newest: Newest, winner: TableRow, plan: Plan, result: Answer, going_on: str) -> bool:
    """Writes best/: the winner's averaged weights, its settings and a model card. An older best/ is replaced.

    Args:
        going_on: the command that resumes the run.

    Returns:
        Whether it could be written: the winner's checkpoint may have been deleted or damaged since the trial ended.
    """
    source, found = newest(winner["id"], (WEIGHTS, SETTINGS))
    if source is None:
        reason = "; ".join(found) or "it has no checkpoint any more"
        logger.error("winner's weights  lost: %s: %s; best/ was not written", winner["id"], reason)
        logger.error("train it again with: %s --repeat-lost", going_on)
        return False
    working = folder / ".best"
    shutil.rmtree(working, ignore_errors=True)
    try:
        working.mkdir()
        for name in (WEIGHTS, SETTINGS):
            shutil.copy2(source / name, working / name)
        write_checksums(working, winner["steps"])
        (working / "README.md").write_text(_card(winner, plan, result), encoding="utf-8")
        replace_folder(working, folder / "best")
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return True


def _card(winner: TableRow, plan: Plan, result: Answer) -> str:
    config = {name.removeprefix("config/"): value for name, value in winner.items() if name.startswith("config/")}
    metrics, test = (
        {name: round(value, 4) for name, value in winner.items() if name.startswith(prefix) and value is not None}
        for prefix in ("val/", "test/")
    )
    trial = plan.question.trial
    trained = plan.question.trial_with({name: value for name, value in config.items() if value is not None})
    best = winner.get("best_step")
    kept = "" if best is None else f" of step {best}, the best one on the validation photographs"
    made = f"Restores with `{shown(trial.checkpoint)}`; not trained."
    if plan.question.space.trains:
        made = (
            f"Trained for {winner['steps']} steps on `{trial.data.source}`, preset `{plan.question.settings.preset}`, "
            f"seed {winner['seed']}; exponentially averaged weights{kept}."
        )
    lines = [
        f"# {trained.method}, {winner['id']} of {plan.question.space.name}",
        "",
        f"- Question: {plan.question.space.question}",
        f"- Answer: {result.verdict}",
        f"- {made}",
        f"- Searched: `{json.dumps(config)}`; everything else is in `{SETTINGS}`.",
        f"- Validation means over {trial.pairs.validation_pairs} images: `{json.dumps(metrics)}`.",
        *([f"- Test means over {trial.pairs.test_pairs} images: `{json.dumps(test)}`."] if test else []),
        *(f"- Made with `{name}={value}`; its licence applies." for name, value in _sources(trained)),
    ]
    return "\n".join(lines) + "\n"


def _sources(trial: TrialSettings) -> list[tuple[str, str]]:
    """Setting name and source of each pretrained weight file that the trial uses."""
    values, sections = flatten(trial), METHODS[trial.method].sections | {"checkpoint"}
    return [(name, values[name]) for name in WEIGHT_PATHS if name.partition(".")[0] in sections and values[name]]


def _write_answer(folder: Path, plan: Plan, rows: list[TableRow], baseline_ids: list[str], result: Answer) -> None:
    report = folder / "report"
    report.mkdir(exist_ok=True)
    table = to_markdown(rows, plan.objective, plan.direction, baseline_ids, result.winner_id)
    first, *numbers = result.sentences
    under = "\n".join(f"- {line}" for line in numbers)
    text = "\n\n".join([f"# {plan.question.space.question}", first, *([under] if under else []), table])
    (report / "answer.md").write_text(text + "\n", encoding="utf-8")
