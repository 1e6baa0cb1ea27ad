"""The first stage of a decoder restores the same latents in training, in validation and in use."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from trainables.data.batches import validation_batches
from trainables.data.prepared import Prepared
from trainables.methods.build import build_method
from trainables.methods.shared.decoder import DecoderMethod
from trainables.methods.shared.first_stage import FirstStage
from trainables.settings import TrialSettings, override

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["stablesr_cfw", "ccsr"])
def test_latents_do_not_depend_on_the_precision_of_the_decoder(
    name: str, trial_of: Callable[[str], TrialSettings], prepared_for: Callable[[TrialSettings], Prepared]
) -> None:
    """Training reads latents that were sampled in float32; validation and restoring sample them under autocast."""
    settings = override(trial_of(name), {"training.precision": "bf16"})
    batch = next(validation_batches(prepared_for(settings), 2, CPU))
    given = batch["latent_degraded"], batch["noise"], batch["noise_key"].tolist()
    expected = FirstStage(settings, CPU)(*given)
    method = build_method(settings, CPU)
    assert isinstance(method, DecoderMethod)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method._restored(batch), expected)
        rounded = method.first_stage(given[0].bfloat16(), given[1].bfloat16(), given[2])
        assert method.restore(batch).isfinite().all()
        changed = method.first_stage.method.sample(batch)
    assert expected.dtype == rounded.dtype == torch.float32
    assert not torch.equal(changed, expected)  # autocast does change what it is left to
