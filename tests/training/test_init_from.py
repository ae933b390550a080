"""A U-Net that begins from another model's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.conditioning.concat import MaskConcat
from diptych.core.errors import UserError
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.training.experiment_config import LatentTraining
from diptych.training.init_from import begin_from
from tests.models.latents import autoencoder, config, joint, system, toy_batch


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    system().save(folder)
    return folder


def repainter(**changes: object) -> LatentDiffusion:
    shape = config(unet=config().unet.override(["concat_channels=5"]), concat=MaskConcat(), **changes)
    return LatentDiffusion(shape, autoencoder(), joint())


def test_what_is_concatenated_is_not_there_at_first(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, old = repainter(), system()
    begin_from(model, str(source))
    generator = torch.Generator().manual_seed(0)
    x, concat = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, 8, generator=generator)
    time, cond = torch.tensor([3.0, 700.0]), old.embed(["a red picture", "a blue picture"])
    with torch.no_grad():
        own = model.eval().unet(x, time, concat=concat, **cond)
        assert torch.equal(own, old.unet(x, time, **cond))
    assert "anew: none" in " ".join(capsys.readouterr().err.split())


def test_the_scale_is_the_other_model_s(source: Path) -> None:
    model = repainter()
    begin_from(model, str(source))
    model.start(toy_batch([1, 2, 3]))
    assert float(model.scale) == 0.5
    begin_from(repainter(latent_scale=0.5), str(source))
    with pytest.raises(UserError, match=r"latents times 0\.5, not 1: leave system\.model\.latent_scale none"):
        begin_from(repainter(latent_scale=1.0), str(source))


def test_what_has_no_place_is_left_out_and_what_is_new_is_said(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = LatentDiffusion(config(unet=config().unet.override(["pooled_width=none"])), autoencoder(), joint())
    begin_from(silent, str(source))
    theirs = system().unet.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in silent.unet.state_dict().items())
    told = LatentDiffusion(config(unet=config().unet.override(["augmented=true"])), autoencoder(), joint())
    new = {name: tensor.clone() for name, tensor in told.unet.state_dict().items() if name not in theirs}
    begin_from(told, str(source))
    said = capsys.readouterr().err
    assert new and all(torch.equal(told.unet.state_dict()[name], tensor) for name, tensor in new.items())
    assert all(name in said for name in new)


def test_another_shape_is_refused(source: Path) -> None:
    wide = LatentDiffusion(config(unet=config().unet.override(["channels=24"])), autoencoder(), joint())
    with pytest.raises(UserError, match=r"only .* have their shape in"):
        begin_from(wide, str(source))


def test_latents_must_mean_the_same(source: Path) -> None:
    with pytest.raises(UserError, match="another first stage"):
        begin_from(LatentDiffusion(config(), autoencoder(seed=9), joint()), str(source))


def test_what_is_concatenated_wants_pictures() -> None:
    shape = config(unet=config().unet.override(["concat_channels=5"]))
    with pytest.raises(UserError, match=r"precomputed must be none"):
        LatentTraining(model=shape, precomputed="cache/x")
