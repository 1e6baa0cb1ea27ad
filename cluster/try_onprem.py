"""Two steps of try_onprem.sh: the configuration of its hosts, and the check of its sweep's answer.

python cluster/try_onprem.py config FILE HEAD WORKER...   onprem.yaml for hosts with these addresses
python cluster/try_onprem.py check RUN                    compares a run with trainings without Ray
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

_LAST_FLAG = {"head": "--dashboard-host=127.0.0.1", "worker": "--object-manager-port=8076"}
_MORE_FLAGS = {"head": "--object-store-memory=100000000", "worker": "--object-store-memory=100000000 --num-cpus=1"}


def write_config(file: Path, head: str, workers: list[str]) -> None:
    """Writes onprem.yaml with these addresses, for root, and with one CPU per worker. The head notices a lost host
    after some 25 s; by default Ray takes 65 s.
    """
    config = yaml.safe_load(Path(__file__).with_name("onprem.yaml").read_text(encoding="utf-8"))
    config["provider"] |= {"head_ip": head, "worker_ips": workers}
    config["auth"]["ssh_user"] = "root"
    config["min_workers"] = config["max_workers"] = len(workers)
    for kind, last in _LAST_FLAG.items():
        commands = config[f"{kind}_start_ray_commands"]
        before, flag, after = commands[-1].partition(last)
        assert flag, f"onprem.yaml: no {last} in {commands[-1]}"
        commands[-1] = f"{before}{last} {_MORE_FLAGS[kind]}{after}"
    commands = config["head_start_ray_commands"]
    commands[-1] = f"export RAY_health_check_failure_threshold=2 && {commands[-1]}"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")


def trained_alone(run: Path, rows: list[dict[str, Any]], store: Path) -> dict[str, dict[int, dict[str, float]]]:
    """Trial -> step -> the values that it reports if it trains in this process, undisturbed.

    Args:
        rows: the trials, of the leaderboard. store: the prepared data.
    """
    from sweeps.planning.question import resolve
    from sweeps.planning.run_folder import reopen_run
    from trainables.data.prepare import prepare
    from trainables.methods.build import method_class
    from trainables.training.loop import World, train
    from trainables.training.reporting import Report

    again = reopen_run(run)
    again.folder.close()
    question, found = resolve(again.settings, again.started), {}
    for row in rows:
        trial = question.trial_with({name: row[f"config/{name}"] for name in question.space.parameters})
        prepared = prepare(trial, store, method_class(trial.method).columns(trial))
        reports: list[Report] = []
        train(trial, prepared, again.record["metrics"], World(), lambda report, write, to=reports: to.append(report))
        found[row["id"]] = {report.step: dict(report.metrics) for report in reports}
    return found


def different(id: str, reports: dict[int, dict[str, Any]], expected: dict[int, dict[str, float]]) -> list[str]:
    """Where the reports of a trial are not those expected; both are step -> metrics."""
    if list(reports) != list(expected):
        return [f"{id}: reports at steps {list(reports)}, undisturbed at {list(expected)}"]
    return [
        f"{id}, step {step}: {name} is {reports[step][name]}, undisturbed {value}"
        for step, values in expected.items()
        for name, value in values.items()
        if name.startswith(("val/", "loss/", "weighted/")) and reports[step][name] != value
    ]


def repeated(id: str, log: str, interval: int) -> list[str]:
    """What the sweep's log says that a trial did again, beyond the interval between two reports."""
    found, last, ended = [], 0, False
    events = "step|continues at step|starts over at step|starts again|finished at step"
    for event, step in re.findall(rf" {id} ({events}):? ?(\d*)", log):
        if ended:
            found.append(f"{id} had finished and was trained again")
        if event.startswith(("continues", "starts over")) and last - int(step) > interval:
            found.append(f"{id} had reported step {last} and {event} {step}")
        last, ended = max(last, int(step or 0)), event.startswith("finished")
    return found


def check(run: Path) -> int:
    """Prints what is wrong with a run of which two machines were lost; returns the exit status."""
    from sweeps.recording.tables import HISTORY, LEADERBOARD, read_rows

    log = (run / "sweep.log").read_text(encoding="utf-8")
    rows = [row for row in read_rows(run / LEADERBOARD) if row["kind"] == "trial"]
    history = read_rows(run / HISTORY)
    wrong = [f"{row['id']}: {row['status']}" for row in rows if row["status"] != "finished"]
    moved = dict(re.findall(r" (t\d+) (?:continues|starts over) at step (\d+)", log))
    if len(moved) < 2:
        wrong.append(f"trials that lost their machine: {', '.join(moved) or 'none'}; expected two")
    disturbed = [row for row in rows if row["id"] in moved]
    for id, expected in trained_alone(run, disturbed, run.parents[1] / "store").items():
        wrong += different(id, {row["step"]: row for row in history if row["id"] == id}, expected)
    for row in rows:
        steps = [line["step"] for line in history if line["id"] == row["id"]]
        if len(steps) > 1:
            wrong += repeated(row["id"], log, steps[1] - steps[0])
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        lines = " and ".join(f"{id} at step {step}" for id, step in moved.items())
        print(f"          {len(rows)} of {len(rows)} trials finished, none trained twice; {lines} continued elsewhere,")
        print("          and report the numbers of undisturbed trainings, to the last digit")
    return bool(wrong)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["config", file, head, *workers]:
            write_config(Path(file), head, workers)
        case ["check", run]:
            raise SystemExit(check(Path(run)))
        case _:
            raise SystemExit(__doc__)
