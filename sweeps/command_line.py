"""The command line of `python run_sweep.py` and `restoration-sweeps run`.

Heavy packages are imported only after the flags have been checked.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from search_spaces import SAMPLERS
from sweeps.planning.budget import time_span
from sweeps.planning.confirmation import FEWEST_SEEDS
from sweeps.planning.continuing import ALLOWED, CHANGING, MOVED, continued, moved, spent_seconds
from sweeps.planning.own_spaces import is_path, read_space_file, register_space
from sweeps.planning.question import resolve
from sweeps.planning.settings import (
    LEAST_REDUCTION,
    LEAST_SHARE,
    PRESETS_GPUS,
    Perceptual,
    SweepSettings,
    field_name,
)
from sweeps.planning.tracker_names import TRACKERS
from sweeps.trial_config import CONFIRMATION, TRIAL
from trainables.common.command import command_flags, exit_statuses, run_command
from trainables.common.errors import CannotRun, InputError, one_line
from trainables.common.flags import Flags, number, whole
from trainables.common.machine import usable_cpus
from trainables.common.paths import is_uri, path_of
from trainables.data.stores.roots import store_root
from trainables.images.sources.notices import shown_plainly
from trainables.settings import assignments

if TYPE_CHECKING:
    from sweeps.planning.plan import Plan
    from sweeps.planning.run_folder import RunFolder
    from sweeps.recording.tables import TableRow

PROG = "run_sweep.py"
EPILOG = f"""\
examples:
  python run_sweep.py --space sinsr_loss_ratios
  python run_sweep.py --space sinsr_loss_ratios --dry-run
  python run_sweep.py --space sinsr_loss_ratios --trials 6 --max-steps 120 --objective psnr
  python run_sweep.py --resume results/sinsr_loss_ratios/20261121-093000
  python run_sweep.py --resume results/sinsr_loss_ratios/20261121-093000 --trials 24
{exit_statuses("no trial finished, or more than half failed; or Ray, a disk or a limit stopped the sweep")}
"""


def parser(prog: str = PROG) -> Flags:
    """The flags. Their defaults are those of `SweepSettings`."""
    description = "Answers a question about an image-restoration model: trains it many times and compares the results."
    epilog = EPILOG if prog == PROG else EPILOG.replace(f"python {PROG}", prog)
    flags = command_flags(prog, description, epilog)
    what = flags.add_argument_group("the question")
    what.add_argument(
        "--space", metavar="NAME", help="the question: name of a file in search_spaces/, or path of an own file"
    )
    what.add_argument("--list", action="store_true", help="list the spaces and presets, and stop")
    what.add_argument(
        "--list-settings",
        nargs="?",
        const="",
        metavar="METHOD",
        help="list what --set takes, with the preset's values, and stop; with a METHOD what that one reads",
    )
    what.add_argument("--preset", default="", metavar="NAME", help="size of data, model and budget (the space's)")
    what.add_argument(
        "--data",
        default="",
        metavar="SOURCE",
        help="photographs or pairs: a folder, .txt, .parquet or URI (the preset's)",
    )
    what.add_argument(
        "--data-input", default="", metavar="DIR", help="degraded images of pairs, instead of --data; any folder name"
    )
    what.add_argument("--data-target", default="", metavar="DIR", help="their targets, under the same file names")
    start = "weights to start from, or to restore with: a finished trial, such as best/, or a public checkpoint's file"
    what.add_argument("--checkpoint", default="", metavar="PATH", help=start)
    what.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of all trials")
    what.add_argument("--seed", type=whole(0), default=0, help="seed of trials and search (0)")
    budget = flags.add_argument_group("the budget")
    budget.add_argument(
        "--trials",
        type=whole(1),
        default=0,
        metavar="N",
        help="trials of the search (the space's points and proposals); the confirmation adds more",
    )
    budget.add_argument(
        "--confirm",
        type=whole(0),
        default=2,
        metavar="K",
        help="train the best K configurations and the baseline again, and measure them on the test photographs (2); "
        "0 leaves it out",
    )
    budget.add_argument(
        "--seeds", type=whole(FEWEST_SEEDS), default=3, metavar="S", help="fresh seeds of each of them (3)"
    )
    budget.add_argument(
        "--max-steps", type=whole(1), default=0, metavar="N", help="training steps per trial (the preset's)"
    )
    budget.add_argument(
        "--confirm-steps",
        type=whole(1),
        default=0,
        metavar="N",
        help="training steps of the confirmation (those of the search)",
    )
    budget.add_argument(
        "--time-budget",
        type=time_span,
        default=0.0,
        metavar="TIME",
        help="stop within this time, confirmation included: 8h, 90m, 1h30m",
    )
    budget.add_argument(
        "--budget-usd",
        type=number(0.01),
        default=0.0,
        metavar="USD",
        help="stop before this is spent, confirmation included; needs --price-per-hour",
    )
    budget.add_argument(
        "--price-per-hour", type=number(0), default=0.0, metavar="USD", help="price of all machines for an hour"
    )
    how = flags.add_argument_group("the search")
    how.add_argument(
        "--objective",
        default="",
        metavar="METRIC",
        help="metric to optimise (the space's); several, as psnr,lpips, for their Pareto front",
    )
    how.add_argument(
        "--constraint",
        action="append",
        default=[],
        metavar="TEXT",
        help="what a winner must reach, such as 'val/psnr>=24'",
    )
    how.add_argument("--sampler", default="", choices=SAMPLERS, help="how configurations are proposed (the space's)")
    how.add_argument(
        "--warm-start", default="", metavar="RUN", help="tell the sampler the trials of another run (folder or URI)"
    )
    metrics = get_args(Perceptual)
    named = f"perceptual metric: {', '.join(metrics)} (auto)"
    how.add_argument("--perceptual", default="auto", choices=metrics, metavar="METRIC", help=named)
    how.add_argument(
        "--metrics",
        default="",
        metavar="NAMES",
        help="further metrics to report: dists, or pyiqa_NAME for a metric of the package pyiqa; several with commas",
    )
    how.add_argument(
        "--reduction-factor",
        type=number(LEAST_REDUCTION),
        default=3.0,
        metavar="R",
        help="ASHA keeps the best 1/R of the trials at each rung (3)",
    )
    where = flags.add_argument_group("folders and resources")
    where.add_argument("--results", default="results", metavar="DIR", help="folder or bucket URI of the runs (results)")
    where.add_argument("--store", default="", metavar="DIR", help="folder or URI of the prepared data (RESULTS/store)")
    where.add_argument(
        "--workers-per-trial", type=whole(1), default=0, metavar="N", help="processes per trial (the preset's)"
    )
    where.add_argument(
        "--cpus-per-worker", type=number(LEAST_SHARE), default=1.0, metavar="N", help="CPUs per process (1)"
    )
    where.add_argument(
        "--gpus-per-worker", type=number(0), default=PRESETS_GPUS, metavar="N", help="GPUs per process (the preset's)"
    )
    where.add_argument(
        "--max-concurrent", type=whole(1), default=0, metavar="N", help="trials at once (as many as fit)"
    )
    where.add_argument(
        "--stop-seconds",
        type=number(0),
        default=5.0,
        metavar="S",
        help="after Ctrl-C or SIGTERM, time in which trials write a checkpoint before they end (5)",
    )
    where.add_argument(
        "--address",
        default="",
        metavar="ADDRESS",
        help="address of a Ray cluster, such as auto; with --resume also `local`: this machine alone",
    )
    where.add_argument(
        "--log-to",
        default="",
        choices=TRACKERS,
        help="also send the numbers of all trials to Weights & Biases, MLflow or Aim, which are extras of the package",
    )
    run = flags.add_argument_group("runs")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop; starts nothing")
    run.add_argument(
        "--resume",
        metavar="RUN",
        help="continue a run, given its folder or URI; --trials N adds trials until it has N, --max-steps N trains the "
        "finalists to step N, --time-budget gives more time, --data tells where moved photographs are",
    )
    run.add_argument(
        "--repeat-lost",
        action="store_true",
        help="with --resume: train finished trials again whose checkpoints are gone or damaged",
    )
    return flags


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """Runs the command line; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)

    def work(flags: argparse.Namespace) -> int:
        if flags.list:
            from sweeps.listing import spaces_and_presets

            print(spaces_and_presets())
            return 0
        if flags.list_settings is not None:
            from sweeps.listing import settings_text

            print(settings_text(flags.list_settings, flags.preset or "sample"))
            return 0
        with shown_plainly():
            return _run(flags) if flags.resume is None else _resume(flags, given)

    return run_command(parser(prog), given, work, "no incomplete files were left")


def _run(flags: argparse.Namespace) -> int:
    if not flags.space:
        raise InputError("--space is missing; --list shows the spaces")
    if flags.repeat_lost:
        raise InputError("--repeat-lost goes with --resume RUN: a new run has lost nothing")
    question = resolve(_settings(flags))
    from sweeps.planning.plan import make_plan

    plan = make_plan(question, download=not flags.dry_run, only_printed=flags.dry_run)
    # Imported after the plan: they take seconds.
    from sweeps.running.expectation import check_budget
    from sweeps.running.warm_start import warm_start_of

    warm = warm_start_of(plan)
    if flags.dry_run:
        return _show(plan)
    plan.check()
    check_budget(plan)
    _announce_ray(question.settings)
    from sweeps.sweep import start

    return start(plan, warm)


def _show(plan: Plan, searched: int = 0, confirmed: int = 0) -> int:
    """Prints the plan, with the time that it takes.

    Args:
        searched, confirmed: trials of the search and of the confirmation that have ended.
    """
    from sweeps.planning.plan_text import plan_text
    from sweeps.running.expectation import expected_time
    from sweeps.running.preparation import estimated_seconds

    seconds = estimated_seconds(plan)
    print(plan_text(plan, seconds))
    print(f"{'time':10} {expected_time(plan, seconds, searched, confirmed)}")
    return 0


def _show_resumed(plan: Plan, folder: RunFolder, rows: Sequence[TableRow], *, repeat: bool) -> int:
    """As `_show`, for a run with these trials.

    Args:
        repeat: whether finished trials without a whole checkpoint train again.
    """
    from sweeps.recording.tables import has_ended
    from sweeps.running.repeating import lost_trials

    steps, again = plan.question.confirm_steps, list[str]()
    if repeat:
        print("looking at the checkpoints of all finished trials", file=sys.stderr)
        try:
            again = lost_trials(folder, rows, steps, look_inside=True)
        except OSError as error:  # the bucket does not answer
            raise CannotRun(one_line(error)) from None
        plan = replace(plan, notes=(*plan.notes, f"--repeat-lost trains again: {', '.join(again) or 'no trial'}"))
    ended = Counter(row["kind"] for row in rows if row["id"] not in again and has_ended(row, confirm_steps=steps))
    return _show(plan, ended[TRIAL], ended[CONFIRMATION])


def _announce_ray(settings: SweepSettings) -> None:
    """Before imports and a start that take seconds. The log does not exist yet."""
    print(f"connecting to Ray at {settings.address}" if settings.address else "starting Ray", file=sys.stderr)


def _settings(flags: argparse.Namespace) -> SweepSettings:
    pairs = assignments(flags.set, "training.batch_size=4")
    values = {name: value for name, value in vars(flags).items() if name in SweepSettings.__dataclass_fields__}
    values["space"] = register_space(flags.space)
    return SweepSettings(**{**values, "set": tuple(pairs), "constraint": tuple(flags.constraint)})


_HERE = "local"  # a value of --address


def _address(flags: argparse.Namespace, settings: SweepSettings) -> str:
    """Where a run goes on; empty for this machine alone. A run may come from somebody else, so the address in it is not
    used: joining their cluster would give them this process and its token.

    Raises:
        InputError: the run was on a cluster, and --address does not say where it goes on.
    """
    if flags.dry_run and not flags.address:  # a plan joins no cluster
        return ""
    if settings.address and not flags.address:
        recorded = one_line(settings.address)
        raise InputError(
            f"--resume {flags.resume}: it ran on the Ray cluster at {recorded}; give --address {shlex.quote(recorded)} "
            f"to join it again, if the run is yours, or --address {_HERE} for this machine alone"
        )
    return "" if flags.address == _HERE else str(flags.address)


def _store(flags: argparse.Namespace, settings: SweepSettings) -> str:
    """Where a run that continues has its prepared data.

    Raises:
        InputError: the run names a bucket, and `--store` was not given: the run may come from somebody else, and
            prepared photographs of this machine would be written there.
    """
    if flags.store:
        return store_root(flags.store)
    if settings.store and is_uri(store_root(settings.store)):
        recorded = one_line(settings.store)
        raise InputError(
            f"--resume {flags.resume}: its prepared data is at {recorded}; give --store {shlex.quote(recorded)} to use "
            "that place again, if the run is yours, or --store DIR"
        )
    return settings.store


def _name_of(space: str) -> str:
    return read_space_file(path_of("--space", space)).name if is_path(space) else space


def _resume(flags: argparse.Namespace, given: Sequence[str]) -> int:
    """Continues a run with its own settings; only those of `continuing.ALLOWED` may be given. `--space` may be given
    again, as `make sweep` does, but must be the run's.
    """
    named = [text.partition("=")[0] for text in given if text.startswith("--")]
    others = [name for name in named if name not in ALLOWED]
    if others:
        raise InputError(
            f"{others[0]} cannot be given with --resume: a run continues with its own settings; expected some of "
            f"{', '.join(sorted(set(ALLOWED) - {'--resume'}))}"
        )
    run = flags.resume if is_uri(flags.resume) else path_of("--resume", flags.resume)
    from sweeps.planning.run_folder import reopen_run

    again = reopen_run(run)
    folder, settings, record, started = again.folder, again.settings, again.record, again.started
    try:
        if flags.space is not None and _name_of(flags.space) != settings.space:
            raise InputError(f"--space {flags.space}: {flags.resume} is a run of the space {settings.space}")
        settings = replace(settings, address=_address(flags, settings), store=_store(flags, settings))
        inputs = {name: getattr(flags, field_name(name)) for name in MOVED if name in named}
        if "--set" in inputs:
            inputs["--set"] = assignments(flags.set, "base.weights=FOLDER")
        settings = moved(settings, inputs)
        from sweeps.planning.inputs import check_same, check_there

        check_there(settings, flags.resume, {*inputs, *(name for name, _ in inputs.get("--set", ()))})
        if "--stop-seconds" in named:
            settings = replace(settings, stop_seconds=flags.stop_seconds)
        from sweeps.planning.plan import make_plan
        from sweeps.planning.run_settings import made_by
        from sweeps.recording.tables import RunTables

        tables = RunTables(folder.path).load()
        rows = [row for row in tables.leaderboard if row["kind"] != "control"]
        spent = spent_seconds(rows, tables.drivers.spent, settings.max_concurrent or usable_cpus())
        changes = {name: getattr(flags, field_name(name)) for name in CHANGING if name in named}
        settings, notes = continued(settings, changes, spent, started)
        question = resolve(settings, started)
        check_same(question, record, flags.resume)
        plan = make_plan(question, tuple(record["metrics"]))
        plan = replace(plan, notes=(*plan.notes, *again.notes, *notes), spent=spent)
        if plan.stores != record["stores"]:
            changed = ", ".join(sorted({name for name, _ in plan.stores.items() ^ record["stores"].items()}))
            raise InputError(
                f"--resume {flags.resume}: the photographs, weights or code for {changed} have changed since the run "
                f"started; restore them or start a new run{made_by(record)}"
            )
        from sweeps.running.warm_start import kept_trials

        warm = kept_trials(folder.path)
        if flags.dry_run:
            return _show_resumed(plan, folder, rows, repeat=flags.repeat_lost)
        plan.check()
        if {"--time-budget", "--budget-usd"} & set(changes):
            from sweeps.running.expectation import check_budget

            check_budget(plan)
        folder.go_on(record, settings, plan.question.trials)
        _announce_ray(settings)
        from sweeps.sweep import resume

        return resume(plan, folder, warm, repeat=flags.repeat_lost)
    finally:
        folder.close()
