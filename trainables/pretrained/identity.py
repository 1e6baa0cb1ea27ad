"""Identity of weights by content: hashes of files, and the identity that is saved with a trained network."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from trainables.pretrained.base_model import PART_WEIGHTS, SHARDS, find_base
from trainables.pretrained.base_schedule import zero_terminal_snr
from trainables.pretrained.finished_trial import SETTINGS
from trainables.pretrained.prompts import is_computed, load_prompts
from trainables.pretrained.shipped import autoencoder_path
from trainables.settings import TrialSettings, flatten
from trainables.settings.methods import METHODS

_PROMPT, _TEXT_ENCODER = "base's prompt", "base's text encoder"


def weights_fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of the files that are read from a folder (diffusers layout or finished trial).

    Other files in the folder, such as the same weights in other formats, have no influence.
    """
    return _fingerprint(_files_read(path) if path.is_dir() else [path])


def _fingerprint(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(_hash_file(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


def _files_read(folder: Path) -> list[Path]:
    names = {"config.json", "scheduler_config.json", SETTINGS, "weights.safetensors"}
    index = folder / SHARDS
    # If there is an index, diffusers reads its shards and ignores a single weights file.
    if index.is_file():
        names |= {SHARDS, *json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    else:
        names.add(PART_WEIGHTS)
    return [folder / name for name in sorted(names) if (folder / name).is_file()]


@functools.lru_cache(maxsize=256)
def _hash_file(path: Path, size: int, changed: int) -> bytes:
    """Computed once per state of a file: a base has gigabytes, and every checkpoint needs its hash."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def resshift_identity(settings: TrialSettings) -> dict[str, Any]:
    """The identity of weights of ResShift and SinSR: the network's shape, the schedule, and the autoencoder's
    content.
    """
    schedule = {f"resshift.{name}": value for name, value in settings.resshift.schedule.items()}
    if settings.resshift.bounded:  # files of version 0.1 do not say it
        del schedule["resshift.bounded"]
    return {
        **flatten(settings.network, "network."),
        **schedule,
        "autoencoder": weights_fingerprint(autoencoder_path(settings.autoencoder.weights)),
    }


def unequal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """A text of the differences between two identities; empty if there are none."""
    expected, found = json.loads(json.dumps(expected)), dict(found)
    if "resshift.bounded" in expected:
        found.setdefault("resshift.bounded", True)  # left out then, see `resshift_identity`
    if _TEXT_ENCODER in expected and _PROMPT in found:  # of an earlier version, with the numbers of its processor
        del expected[_TEXT_ENCODER], found[_PROMPT]
    parts = [
        f"{name} is {_short(found.get(name))} in the file and {_short(expected.get(name))} in the settings"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    return f"does not match: {'; '.join(parts)}" if parts else ""


def _short(value: Any) -> Any:
    """A hash is cut to its first digits."""
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else value


def base_identity(settings: TrialSettings) -> dict[str, str | bool]:
    """The parts of the base on which a latent method's weights depend: UNet, autoencoder, schedule and prompt."""
    folder = find_base(settings.base.weights, settings.base.revision)
    if is_computed(settings):  # the numbers depend on the processor, what computes them does not
        name, prompt = _TEXT_ENCODER, _text_encoder_fingerprint(folder)
    else:
        name, prompt = _PROMPT, hashlib.sha256(load_prompts(settings).positive.numpy().tobytes()).hexdigest()
    padded = {"base's prompt is padded": True} if name == _TEXT_ENCODER and settings.base.padded_prompt else {}
    return {
        "base": base_fingerprint(settings),
        "base's autoencoder": base_fingerprint(settings, "vae"),
        "base's scheduler": base_fingerprint(settings, "scheduler"),
        name: prompt,
        **padded,  # left out otherwise, for files of before this setting
        "zero terminal SNR": zero_terminal_snr(folder, settings.diffusion),
    }


def _text_encoder_fingerprint(folder: Path) -> str:
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    files = [encoder / "config.json", encoder / "model.safetensors", tokenizer / "vocab.json", tokenizer / "merges.txt"]
    return _fingerprint(file for file in files if file.is_file())  # a tokenizer may be in one file of another name


def base_fingerprint(settings: TrialSettings, part: Literal["unet", "vae", "scheduler"] = "unet") -> str:
    """Identifies a part of the base by content."""
    return weights_fingerprint(find_base(settings.base.weights, settings.base.revision) / part)


def autoencoder_fingerprint(settings: TrialSettings) -> str:
    """Identifies the autoencoder by content."""
    if METHODS[settings.method].latents == "kl":
        return base_fingerprint(settings, "vae")
    return weights_fingerprint(autoencoder_path(settings.autoencoder.weights))
