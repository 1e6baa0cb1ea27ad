"""Any metric of pyiqa, with or without a target, as the package computes it: https://github.com/chaofengc/IQA-PyTorch.

pyiqa is an optional package: its licence (PolyForm Noncommercial) forbids commercial use, and it brings some thirty
packages. It downloads the weights of its metrics itself, into torch hub's folder. Its loader would unpickle any object;
here PyTorch reads tensors only.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainables.common.errors import InputError, one_line
from trainables.metrics.names import METRICS, PYIQA, MetricUnavailableError
from trainables.metrics.pyiqa_names import register_pyiqa

_SEED = 0  # of metrics that look at random crops
_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # read by `torch.load`


class PyIQA(nn.Module):
    """A metric of pyiqa with frozen weights.

    Args:
        name: its full name, such as "val/pyiqa_niqe".

    Raises:
        InputError: pyiqa has no such metric.
        MetricUnavailableError: pyiqa is not installed, or its metric cannot be made: for example, because its weights
            are not in torch hub's folder and cannot be downloaded.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        register_pyiqa([name])
        self.name, self.alone = name, METRICS[name].compared_with == "nothing"
        try:
            with torch.random.fork_rng(devices=[]), _tensors_only(), contextlib.redirect_stdout(io.StringIO()):
                pyiqa = importlib.import_module("pyiqa")
                self.metric = pyiqa.create_metric(name.removeprefix(PYIQA), device="cpu")
        except Exception as error:  # of a package that is missing, a download, a damaged file: many types
            raise MetricUnavailableError(
                f"{name} is absent: pyiqa cannot make it ({one_line(error)}); its weights belong into "
                f"{os.path.join(torch.hub.get_dir(), 'pyiqa')}"
            ) from error
        self.requires_grad_(False).eval()

    def forward(self, restored: Tensor, target: Tensor) -> Tensor:
        """(B, 3, H, W) RGB images in [0, 1] -> (B,) float32 values. A metric without a target ignores `target`."""
        devices = [restored.device] if restored.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_SEED)
            values = self.metric(restored) if self.alone else self.metric(restored, target.clamp(0, 1))
        return values.float().reshape(len(restored))

    def check_size(self, side: int) -> None:
        """Checks that the metric measures two random images of side x side pixels.

        Raises:
            InputError: it fails, or the values are not two finite numbers.
        """
        generator = torch.Generator().manual_seed(_SEED)
        restored, target = torch.rand(2, 2, 3, side, side, generator=generator)
        try:
            values = self(restored, target)
            problem = "" if values.isfinite().all() else "its values are not finite"
        except Exception as error:  # of any of its networks: many types
            problem = one_line(error)
        if problem:
            raise InputError(f"{self.name}: pyiqa cannot measure images of {side} x {side} pixels ({problem})")


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """Inside, `torch.load` refuses files with objects that are not tensors, whatever its caller asks for."""
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before
