"""The conditioning of a base's empty prompt, read or computed, and that of any text by the base's own text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainables.common.errors import InputError, one_line
from trainables.pretrained.base_model import EMPTY_PROMPT, read_shape, unusable

if TYPE_CHECKING:
    from torch import Tensor


def load_empty_prompt(folder: Path, padded: bool = False) -> Tensor:
    """The conditioning of the empty prompt, `(1, tokens, dim)` float32.

    Read from `empty_prompt.safetensors`, its only tensor, or computed: the text encoder's last hidden states of the
    start and end tokens, as in Marigold.

    Args:
        padded: whether a computed one is padded to the tokenizer's length, as in StableSR, CCSR, OSEDiff and PiSA-SR.

    Raises:
        InputError: neither exists or can be read, values are not finite, or `dim` is not the UNet's
            `cross_attention_dim`.
    """
    width = read_shape(folder).cross_attention_dim
    try:
        prompt = (
            _read_empty_prompt(folder)
            if (folder / EMPTY_PROMPT).is_file()
            else encode_prompts(folder, {"": ""}, padded)[""].embedding
        )
    except Exception as error:  # the readers raise many types for a wrong file
        raise unusable(folder, f"the empty prompt cannot be loaded: {one_line(error)}") from None
    if prompt.ndim != 3 or prompt.shape[0] != 1 or prompt.shape[2] != width:
        wanted = f"(1, tokens, {width}), the cross_attention_dim of unet/"
        raise unusable(folder, f"the empty prompt is {tuple(prompt.shape)}, not {wanted}")
    if not prompt.isfinite().all():
        raise InputError(f"base.weights={folder}: the empty prompt has infinite or NaN values; expected finite ones")
    return prompt


def _read_empty_prompt(folder: Path) -> Tensor:
    from safetensors.torch import load_file

    (prompt,) = load_file(folder / EMPTY_PROMPT).values()
    return prompt.float()


class EncodedPrompt(NamedTuple):
    """`embedding`: (1, tokens, dim) float32. `tokens`: of the text, without padding. `cut`: whether it had more."""

    embedding: Tensor
    tokens: int
    cut: bool


def encode_prompts(folder: Path, texts: Mapping[str, str], padded: bool = False) -> dict[str, EncodedPrompt]:
    """The last hidden states of a base's text encoder for each text, under the names of `texts`.

    Args:
        padded: whether each is padded to the tokenizer's length.
    """
    import torch
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    loaded: Any = CLIPTextModel.from_pretrained(
        folder / "text_encoder",
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    text_encoder, report = loaded
    if report["missing_keys"]:
        raise ValueError(f"text_encoder/ lacks {', '.join(sorted(report['missing_keys']))}")
    longest = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    encoded = {}
    for name, text in texts.items():
        wanted = len(tokenizer(text).input_ids)
        padding = "max_length" if padded else "do_not_pad"
        tokens = tokenizer(text, padding=padding, max_length=longest, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            encoded[name] = EncodedPrompt(text_encoder(tokens)[0], min(wanted, longest), wanted > longest)
    return encoded
