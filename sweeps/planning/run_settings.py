"""settings.yaml of a run: every setting and what it was made with; how it is written, and read back."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sweeps.planning.inputs import weights_of
from sweeps.planning.own_spaces import SPACE_FILE, kept_space
from sweeps.planning.question import Question, Started, absolute_paths, load_space
from sweeps.planning.run_files import RUN_SETTINGS
from sweeps.planning.settings import BASE_METRICS, SweepSettings
from trainables.common.buckets import BucketFolder
from trainables.common.errors import InputError, one_line
from trainables.common.paths import ROOT, is_checkout, is_uri, write_durably
from trainables.common.version import PROJECT, VERSION
from trainables.data.stores.roots import store_root
from trainables.metrics.names import METRICS, PYIQA, register
from trainables.settings import flatten, override

UNCONFIRMED = "unconfirmed"
"""Key of why nothing may be called better, written when a sweep ends; empty if its confirmation is whole."""
_PYIQA = "pyiqa"
_MOST_BYTES, _MOST_CHARACTERS = 1_000_000, 50_000
"""Of a settings.yaml, which has about 10 kB; of one value in it."""
_REMEDY = "put back a copy of this file, or start a new run; this run's checkpoints can still restore pictures"
_VERSIONS = ("torch", "ray", "optuna", "diffusers", "torchmetrics", "pyarrow")


def new_record(
    question: Question, metrics: tuple[str, ...], objectives: Sequence[str], stores: Mapping[str, str], store: str
) -> dict[str, Any]:
    """The content of settings.yaml of a new run.

    Args:
        objectives: their full names, the first one first.
        stores: see `Plan.stores`. store: their root.
    """
    return {
        "command": command_of(question.settings),
        "question": question.space.question,
        "objective": objectives[0],
        "objectives": list(objectives),
        "metrics": list(metrics),
        **_of_pyiqa(metrics),
        "trials": question.trials,
        "trial": _plain(flatten(question.trial)),
        "methods": _methods(question),
        "weights": weights_of(question),
        "stores": dict(stores),
        "store": store,
        "versions": _versions(),
        "commit": _commit(),
    }


def made_by(record: Mapping[str, Any]) -> str:
    """What a message about a run adds if this version did not make it, or perhaps did not; else empty."""
    versions = record.get("versions")
    version = versions.get(PROJECT) if isinstance(versions, Mapping) else None
    if version == VERSION:
        return ""
    if not version:
        return f"; the run does not say which version of {PROJECT} made it, perhaps an earlier one than this, {VERSION}"
    return f"; the run was made by version {one_line(version)[:40]} of {PROJECT}, this is {VERSION}"


def write_record(run: Path, record: Mapping[str, Any]) -> None:
    """Writes a run's settings.yaml, or replaces it."""
    write_durably(run / RUN_SETTINGS, yaml.safe_dump(_plain(record), sort_keys=False))


def read_record(run: Path, named: str = "") -> dict[str, Any]:
    """The content of a run's settings.yaml. The metrics of pyiqa that it names become known.

    Args:
        named: the run in messages, such as "--warm-start DIR"; by default its path.

    Raises:
        InputError: not the folder of a run, or the file is damaged.
    """
    named = named or str(run)
    try:
        record = _mapping("its content", _parsed(run / RUN_SETTINGS))
        register_recorded(record)
    except OSError as error:
        raise InputError(
            f"{named}: not the folder of a run ({error.strerror}); expected one with a {RUN_SETTINGS}"
        ) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # YAML's dates and numbers raise ValueError
        raise InputError(f"{named}/{RUN_SETTINGS}: {one_line(error)}; {_REMEDY}") from None
    return record


class _Loader(yaml.SafeLoader):
    """YAML without what makes a short text a large value: aliases, and numbers with thousands of digits."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        place = f"line {event.start_mark.line + 1}" if event.start_mark else "it"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{place} has the alias *{event.anchor}; expected none")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_CHARACTERS:
            raise ValueError(f"{place} has a value of {len(event.value)} characters")
        return super().compose_node(parent, index)


def _parsed(path: Path) -> Any:
    """The content of a YAML file, which may come from somebody else.

    Raises:
        OSError: it cannot be read.
        ValueError, RecursionError, YAMLError: it is no YAML, or too large.
    """
    with open(path, "rb") as file:
        text = file.read(_MOST_BYTES + 1)
    if len(text) > _MOST_BYTES:
        raise ValueError(f"larger than {_MOST_BYTES / 1e6:g} MB")
    if not text.strip(b"\0 \n"):
        raise ValueError("empty")  # as a power loss leaves a file of version 0.1
    return yaml.load(text, _Loader)  # a SafeLoader


def recorded_settings(run: Path) -> tuple[SweepSettings, dict[str, Any]]:
    """The settings that a run was started with, and its whole settings.yaml.

    Raises:
        InputError: not the folder of a run, or its settings are not accepted.
    """
    record = read_record(run, f"--resume {run}")
    try:
        settings, record = settings_in(record)
    except ValueError as error:
        raise InputError(f"--resume {run / RUN_SETTINGS}: {one_line(error)}{made_by(record)}") from None
    return settings, record


def started_with(run: Path, record: Mapping[str, Any]) -> tuple[Started, tuple[str, ...]]:
    """The space and the settings that a run was started with, and notes for its user.

    Args:
        record: its settings.yaml, as `recorded_settings` returns it.

    Raises:
        InputError: its space is damaged, or is another one now.
    """
    name = record["command"]["space"]
    space = kept_space(run, name)
    if methods := record["methods"]:
        if space is None:
            raise InputError(f"--resume {run}: its {SPACE_FILE} is missing; put back a copy, or start a new run")
        common = next(iter(methods.values()))
        return Started(space, {method: {**common, **values} for method, values in methods.items()}), ()
    # Earlier versions recorded the baseline's trial only, and no space of the package.
    trial, baseline = record["trial"], (space or load_space(name)).baseline.values
    then = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in trial.items()}
    if changed := [key for key, value in baseline.items() if then.get(key, value) != value]:
        raise InputError(
            f"--resume {run}: the space {name} has another baseline now: {changed[0]} was {one_line(then[changed[0]])} "
            f"and is {baseline[changed[0]]}{made_by(record)}; go on with that version"
        )
    known = {key: value for key, value in trial.items() if key not in baseline}
    note = "an earlier version started this run: what it did not record (points, further methods) is as it is now"
    return Started(space, {str(trial.get("method")): known}), (note,)


def located(run: Path, settings: SweepSettings, record: Mapping[str, Any]) -> SweepSettings:
    """The settings of a run for the place where its folder is now: it may have been moved or copied.

    The prepared data is looked for where the command line said, next to the run, and where it was at the start. The
    first place that has all of it is used.
    """
    parents = run.absolute().parents
    results = parents[1] if len(parents) > 1 and parents[0].name == settings.space else parents[0]
    beside = str(results / "store")
    at_start = str(record.get("store") or Path(settings.results) / "store")
    places = [settings.store] if settings.store else [beside, at_start]
    first = [name for label, name in record["stores"].items() if "#" not in label]  # others are made during training
    complete = (
        place
        for place in (*places, beside, at_start)
        if not is_uri(place) and all((Path(place) / name).is_dir() for name in first)
    )
    store = settings.store if is_uri(settings.store) else next(complete, places[0])
    return replace(settings, results=str(results), store=store)


def located_in_bucket(run: BucketFolder, settings: SweepSettings) -> SweepSettings:
    """The settings of a run for the bucket where it is now. Its prepared data is next to it, unless `--store` named
    another place."""
    return replace(settings, results=run.parent.parent.uri)


@dataclass(frozen=True)
class _Record:
    """The part of settings.yaml that `override` checks when a run is resumed."""

    command: SweepSettings
    metrics: tuple[str, ...] = ()


def settings_in(record: dict[str, Any]) -> tuple[SweepSettings, dict[str, Any]]:
    """The settings in the content of a settings.yaml, and this content, checked.

    Raises:
        ValueError: they are not accepted.
    """
    command = {"space": None, "set": [], **_mapping("command", record.get("command"))}
    given = _pairs("command.set", command.pop("set"))
    if "confirm" not in command:  # a run of version 0.1, which had neither a confirmation nor test photographs
        command["confirm"], given = 0, tuple({**dict(given), "data.test_share": "0"}.items())
    command |= _budget(record, command, dict(given))
    settings = SweepSettings(space="", set=given)
    stores = dict(_pairs("stores", [[*each] for each in _mapping("stores", record.get("stores")).items()]))
    changes = {f"command.{name}": value for name, value in command.items()}
    read = override(_Record(settings), {**changes, "metrics": record.get("metrics")})
    known = [name for name, metric in METRICS.items() if metric.compared_with != "other seeds"]
    if not {BASE_METRICS[0]} <= set(read.metrics) <= set(known):
        raise ValueError(f"metrics={record['metrics']}: expected {BASE_METRICS[0]}, and others of {', '.join(known)}")
    methods = _mapping("methods", record.get("methods", {}))
    weights = _mapping("weights", record.get("weights", {}))
    checked = {
        "metrics": list(read.metrics),
        "stores": stores,
        "trial": _of_trial("trial", record.get("trial", {})),
        "weights": weights,
        "methods": {method: _of_trial(f"methods.{method}", values) for method, values in methods.items()},
    }
    if not isinstance(record.get("continued", []), list):
        raise ValueError("continued is no list")
    return read.command, {**record, **checked}


def _budget(record: dict[str, Any], command: dict[str, Any], given: Mapping[str, str]) -> dict[str, int]:
    """The trials and steps that the run started with, where its command left them to a preset: presets change."""
    trial = record.get("trial")
    steps = trial.get("training.max_steps") if isinstance(trial, dict) else None
    recorded = {"trials": record.get("trials"), "max_steps": None if "training.max_steps" in given else steps}
    return {
        name: value
        for name, value in recorded.items()
        if type(value) is int and value > 0 and command.get(name, 0) == 0
    }


def command_of(settings: SweepSettings) -> dict[str, Any]:
    """The settings of the command line as settings.yaml has them, with absolute paths of inputs: the run may be resumed
    from another folder."""
    pairs = [[name, str(absolute_paths({name: value}).get(name, value))] for name, value in settings.set]
    inputs = {
        "data": "data.source",
        "data_input": "data.input",
        "data_target": "data.source",
        "checkpoint": "checkpoint",
    }
    paths = {name: getattr(settings, name) for name in inputs}
    paths = {name: absolute_paths({inputs[name]: path}).get(inputs[name], path) for name, path in paths.items()}
    store = store_root(settings.store) if settings.store else ""
    return _plain(asdict(settings)) | {"set": pairs, **paths, "store": store}


def _methods(question: Question) -> dict[str, dict[str, Any]]:
    """`Question.methods`; of the second and later ones, what differs from the first."""
    first, *others = question.methods.items()
    changes = {
        method: {name: value for name, value in settings.items() if value != first[1].get(name)}
        for method, settings in others
    }
    return {first[0]: _plain(first[1])} | {method: _plain(values) for method, values in changes.items()}


def _of_pyiqa(metrics: tuple[str, ...]) -> dict[str, Any]:
    """Direction and kind of the metrics of pyiqa, so that the run can be read where pyiqa is not installed."""
    named = [METRICS[name] for name in metrics if name.startswith(PYIQA)]
    return {_PYIQA: {metric.name: [metric.direction, metric.compared_with] for metric in named}} if named else {}


def register_recorded(record: Mapping[str, Any]) -> None:
    """Adds the metrics of pyiqa that a run names in its settings.yaml to the known metrics.

    Raises:
        ValueError: they are not recorded as `create_run` does.
    """
    for name, facts in _mapping(_PYIQA, record.get(_PYIQA, {})).items():
        match facts:
            case ["max" | "min" as direction, "target" | "nothing" as compared_with] if name.startswith(PYIQA):
                register(name, direction, compared_with)
            case _:
                raise ValueError(f"{_PYIQA} holds {one_line(repr({name: facts}))}; expected directions of {PYIQA}*")


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "missing" if value is None else one_line(repr(value))
        raise ValueError(f"{name} is {found}; expected names with their values")
    return {str(key): each for key, each in value.items()}


def _of_trial(name: str, value: Any) -> dict[str, Any]:
    """Settings of trials. Their values are checked when they are used, but for numbers too long for a message."""
    values = _mapping(name, value)
    left = [*values.items()]
    while left:
        key, each = left.pop()
        if isinstance(each, int) and each.bit_length() > 64:
            raise ValueError(f"{name}.{one_line(key)[:60]} is a number of {each.bit_length()} bits")
        if isinstance(each, list | dict):
            left += [(key, one) for one in (each.values() if isinstance(each, dict) else each)]
    return values


def _pairs(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    for pair in value if isinstance(value, list) else [value]:
        match pair:
            case [str(), str()]:
                continue
        raise ValueError(f"{name} holds {one_line(repr(pair))}; expected pairs of texts")
    return tuple((one, other) for one, other in value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _versions() -> dict[str, str]:
    return {
        PROJECT: VERSION,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }


def _commit() -> str:
    """The commit of the code, with + if files were changed; empty outside a git checkout."""
    if not is_checkout():  # the package may be installed inside another project's checkout
        return ""
    try:
        ask = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        return subprocess.run(ask, capture_output=True, encoding="utf-8", timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
