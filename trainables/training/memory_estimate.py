"""An estimate of a GPU's memory in training, from one step of the real method whose tensors have shapes and no values.

The method is built on PyTorch's "meta" device: nothing is computed or allocated. Counted are the bytes of all tensors
that are alive at once, with autocast's copies. Not counted: the context of CUDA (some 0.5 GB a process), the work space
of convolutions, gaps in the allocator, and the networks of metrics.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward as _run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from trainables.data.batches import UNIFORM, chunk_steps, of_one_draw
from trainables.data.stages.kinds import MAKERS, STAGE_OF
from trainables.data.stages.pairs import pairs_columns
from trainables.data.stores.shard_format import Column
from trainables.diffusion.noise import coarse_levels
from trainables.methods.method import Batch, Method, Phase
from trainables.methods.shared.encoding import UNDAMAGED, Encoding, batch_columns
from trainables.methods.shared.precision import AUTOCAST
from trainables.pretrained.autoencoders import latent_shape
from trainables.settings import TrialSettings

_CHUNKS = 2  # on the device: the present one and the next

# What CUDA's autocast computes in the lower precision and in float32, of what our networks and losses call.
_LOWER = frozenset(
    {F.conv2d, F.conv_transpose2d, F.linear, F.scaled_dot_product_attention}
    | {torch.matmul, torch.bmm, torch.baddbmm, torch.einsum, Tensor.matmul, Tensor.__matmul__}
)
_IN_FLOAT32 = frozenset(
    {F.group_norm, F.layer_norm, F.softmax, F.log_softmax, F.softplus, F.mse_loss, F.l1_loss, F.smooth_l1_loss}
    | {torch.softmax, torch.exp, torch.pow, torch.sum, torch.norm, torch.group_norm, torch.layer_norm}
    | {Tensor.softmax, Tensor.exp, Tensor.pow, Tensor.sum, Tensor.norm, Tensor.prod}
)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations inside it have made and that are alive.

    Args:
        before: tensors that are not counted.

    Attributes:
        now, peak: bytes.
    """

    def __init__(self, before: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held = [tensor.untyped_storage() for tensor in before]
        self._known = {storage._cdata: 0 for storage in self._held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else (made,):
            if isinstance(one, Tensor):
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:  # otherwise it is a view
            self._known[key] = size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


class _AutocastOfCUDA(TorchFunctionMode):
    """Converts as CUDA's autocast does: on "meta" PyTorch has none, and a CPU's keeps other functions in float32.

    Args:
        dtype: of the step; None for float32.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtypes = [dtype]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, dtype = kwargs or {}, self._dtypes[-1]
        if dtype is not None and (func in _LOWER or func in _IN_FLOAT32):
            wanted = dtype if func in _LOWER else torch.float32
            args = [_converted(one, wanted) for one in args]
            kwargs = {name: _converted(one, wanted) for name, one in kwargs.items()}
        if func is F.scaled_dot_product_attention and args[0].device.type == "meta":
            return _attention(*args, **kwargs)
        if func is torch.autograd.grad:  # of one scalar and one parameter
            return self.backward(*(one[0] if isinstance(one, list | tuple) else one for one in args[:2]))
        return func(*args, **kwargs)

    def backward(self, total: Tensor, parameter: nn.Parameter | None = None) -> tuple[Tensor | None]:
        """The backward pass of a scalar; with a parameter, its gradient alone, and the graph is kept.

        `Tensor.backward` would turn this mode off, and gradient checkpointing computes the forward pass again.
        """
        inputs = () if parameter is None else (parameter,)
        with self:
            start = (torch.ones_like(total),)
            _run_backward((total,), start, bool(inputs), False, inputs, allow_unreachable=True, accumulate_grad=True)
        if parameter is None:
            return (None,)
        gradient, parameter.grad = parameter.grad, None
        return (gradient,)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Inside, `torch.autocast` tells this mode where the networks turn it off."""
        real = torch.autocast

        @contextmanager
        def autocast(device: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
            self._dtypes.append(dtype if enabled else None)
            try:
                yield
            finally:
                self._dtypes.pop()

        torch.autocast = autocast  # type: ignore[assignment, misc]
        try:
            yield
        finally:
            torch.autocast = real  # type: ignore[misc]


def _converted(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *_: Any, **more: Any) -> Tensor:
    """That of a GPU, which keeps its result and a number per query, not the matrix of weights."""
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    bias = more.get("attn_mask", mask)
    output: Tensor = attend(q, k, v, bias, torch.is_grad_enabled())[0]
    return output


def training_bytes(method: Method, workers: int = 1) -> int:
    """Bytes on the GPU of one worker: networks, averages, optimisers, gradients, and what a step keeps at its peak.

    Args:
        method: on "meta". On a CPU the step is computed, on a batch of zeros.
        workers: that share a batch.
    """
    training, trained = method.settings.training, 4 * method.parameters[0]
    state = _adafactor_bytes(method) if training.optimiser == "adafactor" else 2 * trained
    averages = trained if training.ema_decay else 0
    share = max(1, training.batch_size // workers)
    rows = max(1, share // (training.accumulate * training.updates))
    peak = max(_step_peak(method, rows), _encoding_peak(method, share))
    in_steps = method.resident_bytes + state + averages + _batch_bytes(method, share) + peak
    return max(in_steps, 4 * sum(one.numel() for part in method.parts for one in part.parameters()))  # when it is built


def _adafactor_bytes(method: Method) -> int:
    """PyTorch's Adafactor keeps means over the last and over the last but one dimension; of vectors every value."""
    sizes = (one.shape for one in method.networks.parameters() if one.requires_grad)
    return 4 * sum(
        math.prod(size[:-1]) + math.prod(size[:-2]) * size[-1] if len(size) > 1 else math.prod(size) for size in sizes
    )


def _batch_bytes(method: Method, share: int) -> int:
    """Of the chunks that `TrainingBatches` has on the device, and of a batch."""
    stored = [column for name, column in _stored(method).items() if name in _read(method)]
    row = share * sum(column.bytes_per_row for column in stored)
    steps = chunk_steps(row, method.settings)
    return _CHUNKS * steps * row + 4 * share * sum(math.prod(shape) for shape in _shapes(method).values())


def _encoding_peak(method: Method, share: int) -> int:
    """The most bytes alive while a worker's share is encoded in the step; 0 if latents are prepared."""
    batch = {name: torch.zeros(share, *shape, device=method.device) for name, shape in _shapes(method).items()}
    held = nn.ModuleList(method.parts)
    with LiveBytes(itertools.chain(held.parameters(), held.buffers(), batch.values())) as live:
        Encoding(method)(batch)
    return live.peak


def _step_peak(method: Method, rows: int) -> int:
    """The most bytes alive in a step besides weights, averages, optimisers and batch, with all phases' gradients."""
    peak = 0
    batch = {name: torch.zeros(rows, *shape, device=method.device) for name, shape in _shapes(method).items()}
    for phase in method.phases:
        others = method.parameters[0] - sum(one.numel() for one in method.updated(phase).values())
        peak = max(peak, 4 * others + _phase_peak(method, phase, batch))
    return peak


def _phase_peak(method: Method, phase: Phase, batch: Batch) -> int:
    held = nn.ModuleList(method.parts)
    autocast = _AutocastOfCUDA(AUTOCAST.get(method.settings.training.precision))
    live = LiveBytes(itertools.chain(held.parameters(), held.buffers(), batch.values()))
    with live, autocast.replaced(), method.only(phase):
        with autocast:
            terms = method.losses(phase, batch, _full_step(method.settings))
        if terms:
            autocast.backward(torch.stack([term.value.float() * term.weight for term in terms.values()]).sum())
    for parameter in method.networks.parameters():
        parameter.grad = None
    return live.peak


def _full_step(settings: TrialSettings) -> int:
    """A late step, in which the perceptual term is due too."""
    last = settings.training.max_steps - 1
    return last - last % settings.perceptual.every


def _shapes(method: Method) -> dict[str, tuple[int, ...]]:
    """Column of a training batch, and of the latents made from it -> its shape without the rows."""
    stored, latent = _stored(method), latent_shape(method.settings).of(method.settings.pairs.image_size)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in method.columns(method.settings) | _read(method):
        if name in stored:
            shapes[name] = stored[name].shape
        elif name == "coarse_noise":
            shapes[name] = tuple(coarse_levels((1, *latent), torch.Generator().manual_seed(0)).shape[1:])
        else:
            shapes[name] = () if name in UNIFORM or name == UNDAMAGED else latent
    return shapes


def _read(method: Method) -> frozenset[str]:
    return batch_columns(method.settings, method.columns(method.settings))


def _stored(method: Method) -> dict[str, Column]:
    """The columns of a training batch that are stored or made from stored ones, of one noise draw."""
    settings, columns = method.settings, pairs_columns(method.settings, method.settings.pairs.image_size)
    for stage in {STAGE_OF[name] for name in method.columns(settings) if name in STAGE_OF} & MAKERS.keys():
        columns |= MAKERS[stage].columns(settings, settings.pairs.image_size)
    return of_one_draw(columns)
