"""Trains the networks that ship with the project: `make assets`, or `python -m trainables.assets`.

Parts, in order: photographs, autoencoder, decoder, teacher, teacher-second, base-autoencoder, base-unet, finished,
measure. Each takes what the earlier ones left in the work folder. A stopped part continues from its last checkpoint
when the same command runs again; a finished part is skipped. Two more run only when named: `ship` copies the results
into `trainables/assets/`, and `winner` measures any finished trial on whole photographs (`--finished`).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import diffusers
import torch
from diffusers import ModelMixin, VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.assets.autoencoder import AutoencoderRecipe, train_autoencoder
from trainables.assets.build_photographs import default_cache, fetch
from trainables.assets.crops import Crops, CropSettings
from trainables.assets.decoder import DecoderRecipe, train_decoder
from trainables.assets.measure import measure
from trainables.assets.stable_diffusion import (
    BaseAutoencoderRecipe,
    BaseUNetRecipe,
    base_scheduler,
    draw_empty_prompt,
    train_base_autoencoder,
    train_base_unet,
)
from trainables.assets.teacher import FIRST, SECOND, TeacherRecipe, teacher_settings, train_teacher
from trainables.assets.trials import RECIPES, train_finished
from trainables.assets.winner import measure_winner
from trainables.assets.work import WorkFolder
from trainables.common.errors import InputError
from trainables.networks.autoencoder import load_vq_f4, save_vq_f4
from trainables.pretrained.base_model import load_vae
from trainables.pretrained.identity import resshift_identity
from trainables.pretrained.shipped import ASSETS
from trainables.pretrained.weights_file import save_weights

Recipe = TypeVar("Recipe", AutoencoderRecipe, DecoderRecipe, TeacherRecipe, BaseAutoencoderRecipe, BaseUNetRecipe)


@dataclass(frozen=True)
class Build:
    """One run of this command. `steps`: overrides those of the parts' recipes. `trial`: what `winner` measures."""

    work: WorkFolder
    cache: Path
    steps: int | None
    trial: Path | None

    def photographs(self) -> None:
        fetch(self.cache, _say)

    def autoencoder(self) -> None:
        recipe = self._shortened(AutoencoderRecipe())
        _save_vq_f4(train_autoencoder(self._crops(), recipe, self.work.root, _say), self.work.first_autoencoder)

    def decoder(self) -> None:
        recipe = self._shortened(DecoderRecipe())
        model = load_vq_f4(_made(self.work.first_autoencoder, "autoencoder"))
        _save_vq_f4(train_decoder(self._crops(), model, recipe, self.work.root, _say), self.work.autoencoder)

    def teacher(self) -> None:
        self._teacher(FIRST, self.work.first_teacher)

    def second_teacher(self) -> None:
        self._teacher(SECOND, self.work.teacher, load_file(_made(self.work.first_teacher, "teacher")))

    def _teacher(self, recipe: TeacherRecipe, result: Path, start: Mapping[str, Tensor] | None = None) -> None:
        settings, recipe = teacher_settings(self.work.autoencoder, recipe.published), self._shortened(recipe)
        autoencoder = load_vq_f4(_made(self.work.autoencoder, "decoder")).requires_grad_(False)
        crops = self._crops(CropSettings(tries=recipe.tries, blur=recipe.blur))
        trained = train_teacher(crops, autoencoder, settings, recipe, self.work.root, _say, start)
        weights = {name: tensor.half() for name, tensor in trained.state_dict().items()}
        save_weights(_partial(result), weights, "resshift", resshift_identity(settings))
        _finish(result)

    def base_autoencoder(self) -> None:
        recipe = self._shortened(BaseAutoencoderRecipe())
        _save_half(train_base_autoencoder(self._crops(), recipe, self.work.root, _say), self.work.base / "vae")

    def base_unet(self) -> None:
        recipe = self._shortened(BaseUNetRecipe())
        empty_prompt = draw_empty_prompt()
        trained = train_base_unet(self._crops(), load_vae(self.work.base), empty_prompt, recipe, self.work.root, _say)
        base_scheduler().save_pretrained(self.work.base / "scheduler")
        save_file({"empty_prompt": empty_prompt}, self.work.base / "empty_prompt.safetensors")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        (self.work.base / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        _save_half(trained, self.work.base / "unet")

    def finished(self) -> None:
        for method in RECIPES:
            if not self.work.finished(method).is_dir():
                train_finished(method, self.work, self.cache / "photographs", _say)

    def measure(self) -> None:
        measure(self.work, _say)

    def winner(self) -> None:
        assert self.trial  # checked with the flags
        measure_winner(self.trial, _say)

    def ship(self) -> None:
        """Copies what is in the work folder over what ships."""
        for source in (self.work.autoencoder, self.work.teacher, self.work.base, *map(self.work.finished, RECIPES)):
            target = ASSETS / source.name
            if source.is_dir():
                shutil.rmtree(target, ignore_errors=True)
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
            _say(f"shipped {source.name}")

    def _shortened(self, recipe: Recipe) -> Recipe:
        return recipe if self.steps is None else replace(recipe, steps=self.steps)

    def _crops(self, settings: CropSettings | None = None) -> Crops:
        fetch(self.cache, _say)
        return Crops.from_cache(self.cache, settings)


PARTS: dict[str, Callable[[Build], None]] = {
    "photographs": Build.photographs,
    "autoencoder": Build.autoencoder,
    "decoder": Build.decoder,
    "teacher": Build.teacher,
    "teacher-second": Build.second_teacher,
    "base-autoencoder": Build.base_autoencoder,
    "base-unet": Build.base_unet,
    "finished": Build.finished,
    "measure": Build.measure,
    "winner": Build.winner,
    "ship": Build.ship,
}
ONLY_NAMED = ("winner", "ship")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    unless_named = f"all but {' and '.join(ONLY_NAMED)} by default"
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{unless_named}: {', '.join(PARTS)}")
    parser.add_argument("--work", type=Path, default=default_cache().parent / "build", help="checkpoints and results")
    parser.add_argument("--photographs", type=Path, default=default_cache(), help="where photographs are cached")
    parser.add_argument("--finished", type=Path, help="the trial that winner measures, such as the best/ of a run")
    parser.add_argument("--steps", type=int, help="steps of the one part named, instead of its recipe's")
    arguments = parser.parse_args()
    names = arguments.parts or [name for name in PARTS if name not in ONLY_NAMED]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}: the parts are {', '.join(PARTS)}")
    if arguments.steps is not None and len(names) != 1:
        parser.error("--steps needs exactly one PART")
    if ("winner" in names) != (arguments.finished is not None):
        parser.error("winner needs --finished, and nothing else takes it")
    torch.set_num_threads(1)
    build = Build(WorkFolder(arguments.work), arguments.photographs, arguments.steps, arguments.finished)
    build.work.root.mkdir(parents=True, exist_ok=True)
    try:
        build.work.check()
        for name in names:
            result = build.work.result(name)
            if result is not None and result.exists():
                _say(f"{name}: done, {result} exists")
            else:
                PARTS[name](build)
    except InputError as error:
        parser.error(str(error))


def _made(result: Path, part: str) -> Path:
    """Raises InputError if the part that makes it has not."""
    if not result.is_file():
        raise InputError(f"{result} is missing; run the part {part} first")
    return result


def _save_vq_f4(model: VQModel, path: Path) -> None:
    """Half precision in the file, float32 in use: everything that follows is trained on the rounded weights."""
    save_vq_f4(copy.deepcopy(model).half(), _partial(path))
    _finish(path)


def _save_half(model: ModelMixin, folder: Path) -> None:
    """In the layout of diffusers, at half precision: half the size. To be loaded in float32."""
    partial = _partial(folder)
    folder.parent.mkdir(exist_ok=True)
    shutil.rmtree(partial, ignore_errors=True)
    copy.deepcopy(model).half().save_pretrained(partial)
    _finish(folder)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _finish(path: Path) -> None:
    os.replace(_partial(path), path)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
