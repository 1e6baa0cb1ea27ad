"""The question of a sweep: settings, space and preset combined into the settings of every trial."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import search_spaces
from search_spaces import SearchSpace
from sweeps.planning.confirmation import Confirmation
from sweeps.planning.objectives import further_metrics, metric_name, parse_constraint, split_objectives
from sweeps.planning.sampling import check_sampler
from sweeps.planning.settings import (
    PRESETS_GPUS,
    SweepSettings,
    field_name,
    flag_name,
)
from trainables.common.errors import InputError, one_line
from trainables.common.locations import shown
from trainables.common.paths import RUN_SETTINGS, is_uri, path_of
from trainables.metrics.names import METRICS
from trainables.pretrained.fetched import finished_at
from trainables.pretrained.finished_trial import check_asked, finished_settings
from trainables.pretrained.shipped import ASSETS
from trainables.settings import (
    SHIPPED,
    TrialSettings,
    check_sections,
    flatten,
    is_read,
    override,
    reason_unread,
    section_defaults,
)
from trainables.settings.methods import METHODS
from trainables.settings.presets import PRESETS, Preset, preset
from trainables.settings.roles import FLAGS, PATHS, ROLES, SHARED, WHEN_RESTORING, is_among
from trainables.settings.sources import given_sources

_SETTINGS = frozenset(section_defaults(TrialSettings))


@dataclass(frozen=True)
class Question:
    """A sweep's settings, combined with its space and preset.

    Attributes:
        changes: method -> its settings that differ from the preset, without the space's parameters and the seed.
        trials: number of trials, with the space's points.
    """

    settings: SweepSettings
    space: SearchSpace
    changes: Mapping[str, Mapping[str, Any]]
    trials: int

    @property
    def confirmation(self) -> Confirmation:
        """With several objectives, at least the ends of the front and its knee."""
        count, objectives = self.settings.confirm, split_objectives(self.settings.objective or self.space.objective)
        return Confirmation(
            max(count, len(objectives) + 1) if count and len(objectives) > 1 else count, self.settings.seeds
        )

    @property
    def confirm_steps(self) -> int:
        """Training steps of a trial of the confirmation."""
        return self.settings.confirm_steps or self.trial.training.max_steps

    @property
    def trial(self) -> TrialSettings:
        """The baseline's settings. Those that belong to no method (data, steps, seed) are the same for all trials."""
        return self.trial_with(self.space.baseline.values)

    def trial_with(self, values: Mapping[str, Any], seed_offset: int = 0, confirming: bool = False) -> TrialSettings:
        """The settings of a trial with these values of the space's parameters.

        Args:
            confirming: whether it is a trial of the confirmation, which may be longer than those of the search.

        Raises:
            InputError: values that the settings refuse, or that are invalid together.
        """
        changes = self.changes[str(values.get("method", next(iter(self.changes))))]
        trial = override(preset(self.settings.preset).trial, {**changes, **values, **absolute_paths(values)})
        longer = (
            {"training.max_steps": self.settings.confirm_steps} if confirming and self.settings.confirm_steps else {}
        )
        return override(trial, {"training.seed": trial.training.seed + seed_offset, **longer})

    def outer_configurations(self) -> list[TrialSettings]:
        """The settings of one trial per point and, if the search proposes trials, per end of each range.

        Raises:
            InputError: values that the settings refuse, or that are invalid together.
        """
        proposed = self.space.edges if self.trials > len(self.space.points) else []
        return [self.trial_with(values) for values in (*(point.values for point in self.space.points), *proposed)]

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Method -> all settings of its trials, by dotted names, before a configuration changes some of them."""
        common = flatten(preset(self.settings.preset).trial)
        return {method: {**common, **changes} for method, changes in self.changes.items()}

    @property
    def every_method(self) -> list[TrialSettings]:
        """The settings of one trial per method: those of the first point with this method."""
        points = {str(p.values.get("method", self.space.method)): p.values for p in reversed(self.space.points)}
        return [self.trial_with(points.get(method, {"method": method})) for method in self.changes]


@dataclass(frozen=True)
class Started:
    """What a run was started with: another version of the project may have other spaces, presets and defaults.

    Attributes:
        space: its space; None for the project's own.
        methods: as `Question.methods`, perhaps without some.
    """

    space: SearchSpace | None
    methods: Mapping[str, Mapping[str, Any]]

    def changes(self, method: str, flags: Container[str]) -> dict[str, Any]:
        """The settings of a method, as in `Question.changes`, without those of flags: the place of an input may be
        another one now."""
        recorded = self.methods.get(method, {})
        return {name: value for name, value in recorded.items() if name in _SETTINGS and name not in flags}


def load_space(name: str) -> SearchSpace:
    """The project's space with this name.

    Raises:
        InputError: an unknown name, or a file that does not define it.
    """
    try:
        return search_spaces.load(name)
    except KeyError as error:
        raise InputError(f"--space {name}: {error.args[0]}") from None
    except search_spaces.SpaceError as error:
        raise InputError(f"--space {name}: {error}") from None


def resolve(settings: SweepSettings, started: Started | None = None) -> Question:
    """Loads the space and the preset and applies all changes, in the order preset, space, flags.

    Args:
        started: of a run that goes on, whose trials are as they were.

    Raises:
        InputError: an unknown name, or a value that is refused.
    """
    started = started or Started(None, {})
    space = started.space or load_space(settings.space)
    settings = dataclasses.replace(settings, preset=settings.preset or space.preset)
    chosen = preset(settings.preset)
    settings = dataclasses.replace(
        settings,
        workers_per_trial=settings.workers_per_trial or chosen.workers,
        sampler=settings.sampler or space.sampler,
        gpus_per_worker=chosen.gpus if settings.gpus_per_worker == PRESETS_GPUS else settings.gpus_per_worker,
    )
    check_sampler(settings.sampler, space, len(split_objectives(settings.objective or space.objective)))
    _check_shared(space)
    flags = _flags(settings, space)
    methods = (str(flags["method"]),) if "method" in flags else space.methods
    for method in methods:
        if method not in METHODS:
            raise InputError(f"--set method={method}: no such method; the methods are {', '.join(METHODS)}")
    _check_read(space, methods, settings)
    changes = {
        method: _changes(method, settings, space, chosen, flags) | started.changes(method, flags) for method in methods
    }
    proposed = chosen.trials - len(space.points) if space.proposals is None else space.proposals
    question = Question(settings, space, changes, settings.trials or len(space.points) + max(0, proposed))
    try:
        trials = question.outer_configurations()
        if not space.trains:
            _check_asked(trials)
    except InputError as error:
        set_by_flag = any(str(error).startswith(name) for name, _ in settings.set)
        searched = str(error).startswith(tuple(space.parameters))
        if set_by_flag or searched:
            raise InputError(f"{'--set ' if set_by_flag else f'--space {space.name}: '}{error}") from None
        if started.methods and not str(error).startswith("--"):
            raise InputError(f"{RUN_SETTINGS} of the run: {one_line(error)}") from None
        fitting = _fitting_presets(settings, space, methods)
        instead = f"; --space {space.name} fits the presets {', '.join(fitting)}" if fitting else ""
        raise InputError(f"--preset {settings.preset}: {error}{instead}") from None
    _check_effects(settings, space, trials)
    for trial in trials:
        _check_shares(settings.workers_per_trial, trial)
    names = _named_objectives(settings.objective) or _named_objectives(space.objective)
    if len(names) > 1 and question.trial.training.keeps_best:
        raise InputError(f"training.keep=best: one objective decides, not {', '.join(names)}; expected last")
    further_metrics(settings.metrics)
    for text in settings.constraint:
        parse_constraint(text)
    if settings.confirm_steps and not space.trains:
        raise InputError(f"--confirm-steps {settings.confirm_steps}: the space {space.name} trains nothing")
    if 0 < settings.confirm_steps < question.trial.training.max_steps:
        least = question.trial.training.max_steps
        raise InputError(f"--confirm-steps {settings.confirm_steps}: expected {least} or more, as in the search")
    return question


def _fitting_presets(settings: SweepSettings, space: SearchSpace, methods: Sequence[str]) -> list[str]:
    """The presets whose settings all points of the space accept."""
    found = []
    for name, one in PRESETS.items():
        own = dataclasses.replace(one, needs=())  # such as --data
        try:
            changes = {method: _changes(method, settings, space, own, {}) for method in methods}
            Question(dataclasses.replace(settings, preset=name), space, changes, one.trials).outer_configurations()
        except InputError:
            continue
        found.append(name)
    return found


def _flags(settings: SweepSettings, space: SearchSpace) -> dict[str, object]:
    """Dotted name -> value, for the settings of trials on the command line."""
    flags: dict[str, object] = {}
    for name, value in settings.set:
        if name in space.parameters:
            raise InputError(
                f"--set {name}={value}: the space {space.name} searches over it; expected another setting, or a space "
                "of your own without this parameter"
            )
        if name in flags:
            raise InputError(f"--set {name}={value}: given twice, first with {flags[name]}; give it once")
        flag = FLAGS.get(name, "")
        if flag == "--seed":
            raise InputError(f"--set {name}={value}: give --seed {value}, which also seeds the search")
        if name == "data.source" and settings.data_target:
            flag = "--data-target"
        if flag and (given := getattr(settings, field_name(flag))):
            raise InputError(f"--set {name}={value}: also set by {flag} {given}; give one of them")
        if name == "training.max_steps" and not space.trains:
            raise InputError(f"--set {name}={value}: the space {space.name} trains nothing")
        flags[name] = value
    flags |= given_sources(settings.data, settings.data_input, settings.data_target)
    if "data.source" in flags:
        flags.setdefault("data.input", "")  # a finished trial may name one
    if settings.max_steps:
        if not space.trains:
            raise InputError(f"--max-steps {settings.max_steps}: the space {space.name} trains nothing")
        flags["training.max_steps"] = settings.max_steps
    return flags


def _changes(
    method: str, settings: SweepSettings, space: SearchSpace, chosen: Preset, flags: Mapping[str, object]
) -> dict[str, object]:
    """The settings of a method's trials that differ from the preset."""
    changes: dict[str, object] = {"method": method, **chosen.methods.get(method, {})}
    checkpoint = str(flags.get("checkpoint", settings.checkpoint)) or ("" if space.trains else chosen.checkpoint)
    if not space.trains:
        if not checkpoint:
            raise InputError(
                f"--space {space.name} trains nothing: it needs --checkpoint FOLDER, a finished trial of {method}, "
                "such as the best/ of a run"
            )
        changes |= _settings_of(checkpoint, method) | WHEN_RESTORING
    read = {name: value for name, value in flags.items() if is_read(name, (method,))}
    changes |= {"checkpoint": checkpoint, "training.seed": settings.seed, **space.fixed, **read}
    changes |= absolute_paths(flatten(chosen.trial) | changes)
    for name, what in chosen.needs:
        if not changes.get(name):
            raise InputError(f"--preset {settings.preset}: needs {what}")
    return changes


def _check_read(space: SearchSpace, methods: Sequence[str], settings: SweepSettings) -> None:
    """Refuses settings that none of the methods reads."""
    check_sections([name for name, _ in settings.set], methods)
    for name in space.parameters:
        if not is_read(name, methods):
            trained = " or ".join(methods)
            raise InputError(
                f"--set method={trained}: the space {space.name} searches {name}, which {trained} does not read"
            )


def _check_effects(settings: SweepSettings, space: SearchSpace, trials: Sequence[TrialSettings]) -> None:
    """Refuses settings, set or searched, that have no effect on any configuration."""
    named = {name: f"--set {name}={value}:" for name, value in settings.set}
    named |= {name: f"--space {space.name}: searches {name}, which" for name in space.parameters}
    for name, text in named.items():
        reasons = {reason_unread(name, trial) for trial in trials if is_read(name, (trial.method,))}
        if reasons and "" not in reasons:
            raise InputError(f"{text} has no effect with {' or '.join(sorted(reasons))}")


def _check_shared(space: SearchSpace) -> None:
    """Refuses a search over steps or photographs, which must be the same for all compared trials."""
    for name in space.parameters:
        if is_among(name, SHARED):
            raise InputError(
                f"--space {space.name}: searches {name}, which is the same for all trials of a sweep; run one sweep "
                "per value, or read the curves of one long run"
            )


def _check_asked(trials: Sequence[TrialSettings]) -> None:
    """See `trainables.pretrained.finished_trial.check_asked`."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        name = f"--checkpoint {shown(trial.checkpoint)}"
        if trial.method not in found:
            found[trial.method] = finished_settings(_finished(trial.checkpoint, trial.method), trial.method, name)
        check_asked(found[trial.method], flatten(trial), name)


def _finished(checkpoint: str, method: str) -> Path:
    return ASSETS / f"{method}_sample" if checkpoint == SHIPPED else finished_at("--checkpoint", checkpoint)


def _settings_of(checkpoint: str, method: str) -> dict[str, object]:
    """The settings of a finished trial, without those of the training loop and of the metrics."""
    folder = _finished(checkpoint, method)
    if folder.is_file():
        raise InputError(
            f"--checkpoint {checkpoint}: a file does not contain the settings for restoring; expected the folder of a "
            f"finished trial of {method}, such as the best/ of a run"
        )
    found = finished_settings(folder, method, f"--checkpoint {shown(checkpoint)}")
    return {name: value for name, value in found.items() if not name.startswith(("training.", "metrics."))}


def absolute_paths(values: Mapping[str, object]) -> dict[str, object]:
    """Absolute paths, because workers and a later `--resume` may run in other folders.

    Raises:
        InputError: a text that cannot be a path.
    """
    absolute: dict[str, object] = {}
    for name in PATHS:
        value, roles = str(values.get(name, "")), ROLES[name]
        if not value or value in roles.builtin or is_uri(value):
            continue
        path = path_of(roles.flag or name, value)
        if not roles.hub or path.is_dir():
            absolute[name] = str(path.absolute())
    return absolute


def _check_shares(workers: int, trial: TrialSettings) -> None:
    """Checks that a batch can be split equally between workers, updates and accumulated parts."""
    batch, parts = trial.training.batch_size, trial.training.accumulate * trial.training.updates
    if batch % (workers * parts):
        raise InputError(
            f"--workers-per-trial {workers}: training.batch_size={batch} cannot be shared equally; "
            f"expected a multiple of {workers * parts} (workers x training.accumulate x training.updates)"
        )


def _named_objectives(text: str) -> tuple[str, ...]:
    """The full names of the metrics of an objective; "perceptual" is returned unchanged."""
    names = split_objectives(text)
    return tuple(name if name == "perceptual" else metric_name("--objective", name) for name in names)


def resolve_objectives(settings: SweepSettings, space: SearchSpace, reported: Sequence[str]) -> tuple[str, ...]:
    """The full names of the metrics to search by.

    Args:
        reported: names of all metrics of this sweep.

    Raises:
        InputError: no such metric, one that this sweep does not report, or the same one twice.
    """
    given = _named_objectives(settings.objective)
    perceptual = [metric for metric in reported if METRICS[metric].perceptual]
    found: list[str] = []
    for name in given or _named_objectives(space.objective):
        if name == "perceptual":
            # Without a perceptual metric, the space's objective falls back to PSNR; the user's objective does not.
            if not perceptual and given:
                raise InputError("--objective perceptual: this sweep reports no perceptual metric, see --perceptual")
            name = perceptual[0] if perceptual else "val/psnr"
        if name not in reported:
            raise InputError(
                f"--objective {name}: this sweep reports {', '.join(reported)}; see --perceptual, --metrics and "
                "docs/metrics.md"
            )
        if name in found:
            text = settings.objective or space.objective
            raise InputError(f"--objective {text}: {name} is there twice; expected different metrics")
        found.append(name)
    for text in settings.constraint:
        if (metric := parse_constraint(text).metric) not in reported:
            raise InputError(
                f"--constraint {text}: this sweep reports {', '.join(reported)}; {metric} is not among them"
            )
    return tuple(found)


def flags(settings: SweepSettings) -> list[str]:
    """The command line with these settings, without default values."""
    line: list[str] = []
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if item.name == "set":
            line += [part for name, text in value for part in ("--set", f"{name}={text}")]
        elif item.name == "constraint":
            line += [part for text in value for part in ("--constraint", text)]
        elif item.name == "time_budget" and value:
            line += ["--time-budget", f"{value:g}s"]
        elif value != item.default:
            line += [f"--{flag_name(item.name)}", str(value)]
    return line
