"""Where a build keeps its checkpoints and results until they ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainables.pretrained.base_model import SHIPPED_BASE
from trainables.pretrained.shipped import SHIPPED_AUTOENCODER, SHIPPED_TEACHER


@dataclass(frozen=True)
class WorkFolder:
    """Results have the names that they ship under; checkpoints and curves lie beside them."""

    root: Path

    @property
    def autoencoder(self) -> Path:
        return self.root / SHIPPED_AUTOENCODER.name

    @property
    def teacher(self) -> Path:
        return self.root / SHIPPED_TEACHER.name

    @property
    def base(self) -> Path:
        return self.root / SHIPPED_BASE.name

    def finished(self, method: str) -> Path:
        return self.root / f"{method}_sample"

    def result(self, part: str) -> Path | None:
        """What shows that a part is done; None for parts that always run."""
        return {
            "autoencoder": self.autoencoder,
            "teacher": self.teacher,
            "base-autoencoder": self.base / "vae",
            "base-unet": self.base / "unet",
        }.get(part)
