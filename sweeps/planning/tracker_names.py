"""Experiment trackers, `--log-to`: which there are, and whether this machine can use one. Checked before Ray starts."""

from __future__ import annotations

import importlib
import importlib.util

from trainables.common.errors import InputError, one_line
from trainables.common.paths import is_uri
from trainables.common.version import PROJECT

TRACKERS = ("wandb", "mlflow", "aim")
"""Names of `--log-to`, of the packages, and of the extras of pyproject.toml."""


def check_tracker(name: str, results: str = "") -> None:
    """Checks that a tracker can be used here.

    Args:
        name: one of `TRACKERS`, or empty for none.
        results: folder or URI of the results.

    Raises:
        InputError: its package is not installed, Weights & Biases has no API key and is not offline, or Aim would have
            to write to a bucket.
    """
    if not name:
        return
    if importlib.util.find_spec(name) is None:
        raise InputError(f"--log-to {name}: the package {name} is not installed; pip install {name}")
    if name == "aim" and is_uri(results):
        raise InputError(
            f"--log-to aim: its data base needs a folder, not --results {results}; expected wandb or mlflow"
        )
    if name == "wandb":
        try:
            # Without a running Ray this only looks for the key.
            importlib.import_module("ray.air.integrations.wandb").WandbLoggerCallback(project=PROJECT).setup()
        except (ValueError, RuntimeError, ImportError, OSError) as error:
            why = "no API key" if isinstance(error, ValueError) else one_line(error)
            raise InputError(
                f"--log-to wandb: {why}; log in with `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline"
            ) from None
