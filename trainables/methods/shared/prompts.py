"""The base class of methods whose base is conditioned on a prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.methods.method import Batch, Method
from trainables.pretrained.prompts import Prompts, check_prompts, load_prompts
from trainables.settings import TrialSettings


class PromptedMethod(Method):
    """A method on a base, with the prompts of `base.prompts`.

    Attributes:
        prompts: the conditionings of the UNet's cross-attention.
    """

    def __init__(self, settings: TrialSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        found = load_prompts(settings)
        self.prompts = Prompts(found.positive.to(device), found.negative.to(device), found.empty.to(device))

    @classmethod
    def check(cls, settings: TrialSettings) -> None:
        super().check(settings)
        check_prompts(settings)

    @staticmethod
    def prompt_columns(settings: TrialSettings) -> set[str]:
        """The columns of a training batch that decide whose prompts are dropped."""
        return {"prompt_uniform"} if settings.base.prompt_dropout else set()

    def prompt_of(self, batch: Batch) -> Tensor:
        """The prompts of a batch, (1 or B, tokens, dim): dropped at random in training."""
        if "prompt_uniform" not in batch:
            return self.prompts.positive
        dropped = batch["prompt_uniform"] < self.settings.base.prompt_dropout
        return torch.where(dropped[:, None, None], self.prompts.empty, self.prompts.positive)
