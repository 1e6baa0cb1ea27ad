"""The metrics of pyiqa by name: "val/pyiqa_niqe" is its "niqe". Direction and kind are those that pyiqa states.

Only the file of pyiqa that lists its metrics is run, because importing the package takes seconds.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainables.common.errors import InputError, one_line
from trainables.metrics.names import METRICS, PYIQA, MetricUnavailableError, register

_LIST = "default_model_configs.py"
_OF_SETS = ("fid", "inception_score")  # metrics of whole sets of images, which have no value per image


def register_pyiqa(names: Iterable[str]) -> None:
    """Adds the metrics of pyiqa among `names` to `METRICS`, unless they are known. Other names are ignored.

    Raises:
        InputError: pyiqa has no such metric, or it has no value per image.
        MetricUnavailableError: pyiqa is not installed.
    """
    for name in names:
        if name.startswith(PYIQA) and name not in METRICS:
            known = {one: entry for one, entry in _listed(name).items() if not one.startswith(_OF_SETS)}
            one = name.removeprefix(PYIQA)
            if one not in known:
                near = ", ".join(f"pyiqa_{other}" for other in difflib.get_close_matches(one, known, n=3, cutoff=0.4))
                found = f"nearest: {near}" if near else f"it has {', '.join(sorted(known))}"
                raise InputError(f"{name}: pyiqa has no metric {one} of single images; {found}")
            lower, alone = known[one].get("lower_better", False), known[one].get("metric_mode") == "NR"
            register(name, "min" if lower else "max", "nothing" if alone else "target")


def _listed(name: str) -> Mapping[str, Mapping[str, Any]]:
    """pyiqa's list: metric -> its facts. `name`: the metric that is asked for."""
    spec = importlib.util.find_spec("pyiqa")
    if spec is None:
        raise MetricUnavailableError(
            f"{name} is absent: pyiqa is not installed; pip install pyiqa, which is non-commercial"
        )
    for folder in spec.submodule_search_locations or ():
        listing = importlib.util.spec_from_file_location("pyiqa_list", Path(folder) / _LIST)
        if listing is not None and listing.loader is not None:
            module = importlib.util.module_from_spec(listing)
            try:
                listing.loader.exec_module(module)
                configurations: Mapping[str, Mapping[str, Any]] = module.DEFAULT_CONFIGS
            except Exception as error:  # of another version: any type
                raise MetricUnavailableError(
                    f"{name} is absent: {Path(folder) / _LIST} cannot be read ({one_line(error)}); expected pyiqa "
                    "0.1.14 or newer"
                ) from error
            return configurations
    raise MetricUnavailableError(
        f"{name} is absent: the folder of pyiqa has no {_LIST}; expected pyiqa 0.1.14 or newer"
    )
