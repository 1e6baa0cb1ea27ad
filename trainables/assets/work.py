"""Where a build keeps its checkpoints and results until they ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainables.common.errors import InputError
from trainables.pretrained.base_model import SHIPPED_BASE
from trainables.pretrained.shipped import SHIPPED_AUTOENCODER, SHIPPED_TEACHER


@dataclass(frozen=True)
class WorkFolder:
    """Results have the names that they ship under, results of first parts their own. Checkpoints and curves lie beside
    them."""

    root: Path

    @property
    def first_autoencoder(self) -> Path:
        """The VQ-f4 before its decoder was trained on."""
        return self.root / "vq_f4_first.safetensors"

    @property
    def autoencoder(self) -> Path:
        return self.root / SHIPPED_AUTOENCODER.name

    @property
    def first_teacher(self) -> Path:
        """The teacher with the published schedule and objective."""
        return self.root / "resshift_first.safetensors"

    @property
    def teacher(self) -> Path:
        return self.root / SHIPPED_TEACHER.name

    @property
    def base(self) -> Path:
        return self.root / SHIPPED_BASE.name

    def finished(self, method: str) -> Path:
        return self.root / f"{method}_sample"

    def check(self) -> None:
        """Raises InputError for a folder of an earlier version, whose results are those of first parts here."""
        for first, result in ((self.first_autoencoder, self.autoencoder), (self.first_teacher, self.teacher)):
            if result.exists() and not first.exists():
                raise InputError(
                    f"--work {self.root}: has {result.name} without {first.name}, as an earlier version left it; "
                    "choose another folder, or rename the one to the other to train on from it"
                )

    def result(self, part: str) -> Path | None:
        """What shows that a part is done; None for parts that always run."""
        return {
            "autoencoder": self.first_autoencoder,
            "decoder": self.autoencoder,
            "teacher": self.first_teacher,
            "teacher-second": self.teacher,
            "base-autoencoder": self.base / "vae",
            "base-unet": self.base / "unet",
        }.get(part)
