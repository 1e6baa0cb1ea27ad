"""CLIP-IQA: how much closer an image is to "Good photo." than to "Bad photo." in CLIP's embedding space.

J. Wang, K. C. K. Chan, C. C. Loy, "Exploring CLIP for Assessing the Look and Feel of Images", AAAI 2023. Needs no
target. As in the paper, it uses CLIP's ResNet-50 without positional embedding, so images of any size are not resized.
Its values equal those of torchmetrics' `clip_image_quality_assessment` with the default model "clip_iqa". torchmetrics
is not called: that model is TorchScript, which contains code, in a package that downloads files itself; its other
models are vision transformers at a fixed 224 pixels, and fail with transformers 5.

The weights are OpenAI's in the layout of open_clip, read from a file in torch hub's folder; they are never downloaded.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trainables.metrics.names import MetricUnavailableError

_REPOSITORY, _FILE = "timm/resnet50_clip.openai", "open_clip_model.safetensors"

# "Good photo." and "Bad photo." in CLIP's byte-pair encoding, between its start and end tokens.
_PROMPTS = ((49406, 886, 1125, 269, 49407), (49406, 2103, 1125, 269, 49407))

# Per-channel mean and deviation of CLIP's training, for images in [0, 1].
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

_LOGIT_SCALE = 100  # CLIP's learned temperature, which reached its upper bound
_HEAD_WIDTH = 64
_EXPANSION = 4


class CLIPIQA(nn.Module):
    """CLIP-IQA score with frozen weights.

    Raises:
        MetricUnavailableError: the weights are not on this machine, or are not those of a CLIP with a ResNet.
    """

    def __init__(self) -> None:
        super().__init__()
        path = weights_path()
        try:
            state = {name: value.float() for name, value in load_file(path).items()}
            self.encoder = _image_encoder(state)
            prompts = _text_encoder(state)(torch.tensor(_PROMPTS))
        except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
            raise MetricUnavailableError(
                f"val/clip_iqa: {path} is not {_REPOSITORY} ({type(error).__name__}); delete it and download it again"
            ) from error
        self.anchors: Tensor
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("anchors", _LOGIT_SCALE * F.normalize(prompts, dim=1), persistent=False)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB images in [0, 1], H and W at least 31 -> (B,) scores in [0, 1]; 1 is a good photo."""
        embedding = F.normalize(self.encoder((image - self.mean) / self.deviation), dim=1)
        return (embedding @ self.anchors.T).softmax(dim=1)[:, 0]


def weights_path() -> Path:
    """The path of the weights in torch hub's folder: under TORCH_HOME, else in the user's cache.

    Raises:
        MetricUnavailableError: no such file; the message says how to get it.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints" / _REPOSITORY.rpartition("/")[2]
    if not (folder / _FILE).is_file():
        raise MetricUnavailableError(
            f"val/clip_iqa is absent: CLIP's weights are not at {folder / _FILE}; "
            f"get them with: hf download {_REPOSITORY} {_FILE} --local-dir {folder}"
        )
    return folder / _FILE


class _Bottleneck(nn.Module):
    """A residual block that blurs before it subsamples: convolutions have stride 1, and an average pool halves the
    size.
    """

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * _EXPANSION, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * _EXPANSION)
        self.pool = nn.AvgPool2d(stride)
        self.downsample: nn.ModuleDict | None = None
        if inputs != width * _EXPANSION:  # always true for stride 2
            shortcut = nn.Conv2d(inputs, width * _EXPANSION, 1, bias=False)
            self.downsample = nn.ModuleDict({"0": shortcut, "1": nn.BatchNorm2d(width * _EXPANSION)})

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        if self.downsample is not None:
            x = self.downsample["1"](self.downsample["0"](self.pool(x)))
        return F.relu(x + y)


class _AttentionPool(nn.Module):
    """Attention with the mean over all positions as query, and the mean and the positions as keys."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embedding)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        mean = tokens.mean(dim=1, keepdim=True)
        tokens = torch.cat([mean, tokens], dim=1)
        projected = (self.q_proj(mean), self.k_proj(tokens), self.v_proj(tokens))
        q, k, v = (value.unflatten(2, (-1, _HEAD_WIDTH)).transpose(1, 2) for value in projected)
        return self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1))


class _ImageEncoder(nn.Module):
    """CLIP's ResNet: (B, 3, H, W) normalised images -> (B, embedding)."""

    def __init__(self, width: int, depths: list[int], embedding: int) -> None:
        super().__init__()
        stem = [(3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1)]
        for i, (inputs, outputs, stride) in enumerate(stem, start=1):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(outputs))
        inputs = width
        for i, depth in enumerate(depths):
            blocks = nn.Sequential()
            for k in range(depth):
                blocks.append(_Bottleneck(inputs, width << i, stride=2 if i > 0 and k == 0 else 1))
                inputs = (width << i) * _EXPANSION
            self.add_module(f"layer{i + 1}", blocks)
        self.attnpool = _AttentionPool(inputs, embedding)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x)))
        x = F.avg_pool2d(x, 2)
        for i in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{i}")(x)
        return self.attnpool(x)


class _TextBlock(nn.Module):
    """A pre-norm transformer block with CLIP's approximation of the GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // _HEAD_WIDTH, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))


class _TextEncoder(nn.Module):
    """CLIP's causal transformer: (B, L) tokens, the end token last -> (B, embedding)."""

    def __init__(self, vocabulary: int, length: int, depth: int, width: int, embedding: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(_TextBlock(width) for _ in range(depth))})
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embedding))

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        for block in self.transformer["resblocks"].children():
            x = block(x, mask)
        return self.ln_final(x[:, -1]) @ self.text_projection


def _image_encoder(state: dict[str, Tensor]) -> _ImageEncoder:
    """The image encoder of a checkpoint, with width and depth from its tensors."""
    state = {name.removeprefix("visual."): value for name, value in state.items() if name.startswith("visual.")}
    del state["attnpool.positional_embedding"]
    depths = [_count(state, f"layer{i}.{{}}.conv1.weight") for i in (1, 2, 3, 4)]
    # The meta device allocates nothing and draws no random numbers, so the caller's random state does not change.
    with torch.device("meta"):
        encoder = _ImageEncoder(len(state["conv3.weight"]), depths, len(state["attnpool.c_proj.weight"]))
    encoder.load_state_dict(state, assign=True)
    return encoder


@torch.no_grad()
def _text_encoder(state: dict[str, Tensor]) -> _TextEncoder:
    """The text encoder, built in the same way; without gradients, because it is used once."""
    state = {name: value for name, value in state.items() if not name.startswith("visual.") and name != "logit_scale"}
    depth = _count(state, "transformer.resblocks.{}.ln_1.weight")
    vocabulary, length = len(state["token_embedding.weight"]), len(state["positional_embedding"])
    with torch.device("meta"):
        encoder = _TextEncoder(vocabulary, length, depth, *state["text_projection"].shape)
    encoder.load_state_dict(state, assign=True)
    return encoder.requires_grad_(False).eval()


def _count(state: dict[str, Tensor], name: str) -> int:
    """How many consecutive numbers, from 0, occur as `name` in `state`."""
    return next(i for i in count() if name.format(i) not in state)
