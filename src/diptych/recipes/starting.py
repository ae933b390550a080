"""Where the training of a second stage starts from: the U-Net of another model, as far as it fits."""

from __future__ import annotations

import torch

from diptych.errors import UserError
from diptych.latent import LatentDiffusion
from diptych.opening import open_model
from diptych.training.journal import say
from diptych.weights.fingerprint import fingerprint


def begin_from(system: LatentDiffusion, source: str) -> None:
    """Give a new model the weights and the scale of another over the same first stage, and say what starts anew.

    Tensors are matched by their names. Where a kernel has more input channels, what it lacks is zeros: the new model
    starts as if what is concatenated were not there.
    """
    other = open_model(source)
    if not isinstance(other, LatentDiffusion):
        raise UserError(f"{source} is no latent model: training cannot start from it")
    if fingerprint(other.autoencoder) != fingerprint(system.autoencoder):
        raise UserError(f"{source} stands on another first stage than system.autoencoder: its latents differ")
    theirs, own, new = other.unet.state_dict(), system.unet.state_dict(), []
    with torch.no_grad():
        for name, tensor in own.items():
            found = theirs.get(name)
            if found is None or not fits(found.shape, tensor.shape):
                new.append(name)
                continue
            tensor.zero_()
            tensor[:, : found.shape[1]].copy_(found) if tensor.ndim > 1 else tensor.copy_(found)
        system.scale.copy_(other.scale)
    system.begun = True
    if 2 * len(new) > len(own):
        raise UserError(
            f"of {len(own)} tensors of this U-Net only {len(own) - len(new)} have their shape in {source}: give it the "
            "shape of that one, or leave system.initial out"
        )
    say(f"{len(own) - len(new)} of {len(own)} tensors are those of {source}; anew: {', '.join(new) or 'none'}")


def fits(found: torch.Size, wanted: torch.Size) -> bool:
    """Whether they are alike but for fewer input channels of a convolution."""
    if found == wanted:
        return True
    return len(found) == len(wanted) == 4 and found[0] == wanted[0] and found[2:] == wanted[2:] and found[1] < wanted[1]
