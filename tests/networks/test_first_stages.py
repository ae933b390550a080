"""Published first stages other than Stable Diffusion's: a codebook, attention at further levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from diptych.networks.quantizer import AT_ONCE, VectorQuantizer
from diptych.recipes import get
from diptych.training.tasks.autoencoding import FirstStageConfig
from tests.networks.reference import noise, randomised

SMALL: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "norm_groups": 4}
VQ = AutoencoderConfig(**SMALL, latent_channels=3, codebook=16)

PUBLISHED = {  # ldm/modules/diffusionmodules/model.py with models/first_stage_models/*/config.yaml, on the meta device
    "kl-f4": 55_312_063,
    "kl-f8": 83_653_863,
    "kl-f16": 69_610_963,
    "kl-f32": 103_880_131,
    "vq-f4": 55_322_782,
    "vq-f4-noattn": 53_219_486,
    "vq-f8": 67_717_295,
    "vq-f8-n256": 67_652_783,
    "vq-f16": 69_593_371,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_first_stages_have_the_published_size(name: str) -> None:
    system = get(name).system
    assert isinstance(system, FirstStageConfig)
    with torch.device("meta"):
        module = Autoencoder(system.network)
    assert sum(p.numel() for p in module.parameters()) == PUBLISHED[name]
    assert f"-f{system.network.factor}" in name


def test_vector_quantizer_finds_the_nearest_entry() -> None:
    """By its distances written out in float64, over more positions than one chunk has."""
    quantiser = randomised(VectorQuantizer(50, 3))
    latents = noise(3, 3, 40, 40)
    assert latents[:, 0].numel() > AT_ONCE
    points = latents.movedim(1, -1).double()
    distances = (points[..., None, :] - quantiser.embedding.weight.double()).square().sum(-1)
    indices = quantiser.indices(latents)
    assert indices.dtype == torch.int64 and torch.equal(indices, distances.argmin(-1))
    assert torch.equal(quantiser(latents).movedim(1, -1), quantiser.embedding.weight[indices])


def test_vector_quantizer_keeps_entries() -> None:
    quantiser = randomised(VectorQuantizer(50, 3))
    entries = quantiser.entries(torch.arange(50).view(1, 5, 10))
    assert torch.equal(quantiser(entries), entries)


@torch.no_grad()
def test_vq_autoencoder_encodes_before_quantisation() -> None:
    module = randomised(Autoencoder(VQ))
    images = noise(2, 3, 8, 8)
    posterior = module.encode(images)
    assert torch.equal(posterior.mean, module.moments(images))
    assert posterior.mean.shape == (2, 3, 4, 4)
    assert torch.equal(posterior.sample(noise(2, 3, 4, 4)), posterior.mean)
    assert module.quantise is not None
    rounded = module.quantise(posterior.mean)
    assert not torch.equal(rounded, posterior.mean)
    assert torch.equal(module.decode(posterior.mean), module.decode(rounded))


def test_kl_autoencoder_posterior() -> None:
    module = randomised(Autoencoder(AutoencoderConfig(**SMALL)))
    moments = module.moments(noise(2, 3, 8, 8))
    assert moments.shape[1] == module.config.moment_channels == 8
    for ours, theirs in zip(module.posterior(moments), Posterior.from_moments(moments), strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_autoencoder_attention_levels() -> None:
    """Without it (and in the middle none), a change of one corner does not reach the other."""
    images = noise(1, 3, 64, 64)
    changed = images.clone()
    changed[..., 0, 0] += 1
    for levels, reaches in (((), False), ((1,), True)):
        module = randomised(Autoencoder(AutoencoderConfig(**SMALL, attention=False, attention_levels=levels)))
        for block in module.modules():  # group norms join positions too, over the whole image
            if isinstance(block, torch.nn.GroupNorm):
                block.forward = lambda x: x
        off = (module.encoder(changed) - module.encoder(images)).abs()
        assert (off[..., -1, -1].max().item() > 0) == reaches


def test_autoencoder_configs_of_older_files() -> None:
    """Names of tensors do not move: files of before are still read."""
    plain, attending = (
        Autoencoder(AutoencoderConfig(**SMALL, attention_levels=levels)).state_dict() for levels in ((), (1,))
    )
    assert plain.keys() < attending.keys()
    assert all(".attention" in key for key in attending.keys() - plain.keys())


@pytest.mark.parametrize(
    ("values", "says"),
    [({"codebook": 0}, "codebook must be at least 1"), ({"attention_levels": (2,)}, "attention_levels must lie in")],
)
def test_autoencoder_config_errors_name_the_field(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        AutoencoderConfig(**SMALL, **values)
