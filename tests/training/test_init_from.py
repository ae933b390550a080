"""A model initialised from another one's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diptych.conditioning.concat_config import MaskConcat
from diptych.core.errors import UserError
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.training import init_from
from diptych.training.experiment_config import LatentTraining
from diptych.training.experiment_data import ImageData
from diptych.training.init_from import init_latent
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from tests.models.latents import CAPTIONS, autoencoder, config, joint, system, toy_batch


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
    init_latent(model, str(source))
    generator = torch.Generator().manual_seed(0)
    x, concat = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 8, 8, generator=generator)
    time, cond = torch.tensor([3.0, 700.0]), old.embed(["a red picture", "a blue picture"])
    with torch.no_grad():
        own = model.eval().unet(x, time, concat=concat, **cond)
        assert torch.equal(own, old.unet(x, time, **cond))
    assert "new: none" in " ".join(capsys.readouterr().err.split())


def test_the_scale_is_the_other_model_s(source: Path) -> None:
    model = repainter()
    init_latent(model, str(source))
    model.start(toy_batch([1, 2, 3]))
    assert float(model.scale) == 0.5
    init_latent(repainter(latent_scale=0.5), str(source))
    with pytest.raises(UserError, match=r"latents times 0\.5, not 1: leave system\.model\.latent_scale none"):
        init_latent(repainter(latent_scale=1.0), str(source))


def test_what_has_no_place_is_left_out_and_what_is_new_is_said(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = LatentDiffusion(config(unet=config().unet.override(["pooled_width=none"])), autoencoder(), joint())
    init_latent(silent, str(source))
    theirs = system().unet.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in silent.unet.state_dict().items())
    told = LatentDiffusion(config(unet=config().unet.override(["augmented=true"])), autoencoder(), joint())
    new = {name: tensor.clone() for name, tensor in told.unet.state_dict().items() if name not in theirs}
    init_latent(told, str(source))
    said = capsys.readouterr().err
    assert new and all(torch.equal(told.unet.state_dict()[name], tensor) for name, tensor in new.items())
    assert all(name in said for name in new)


def test_another_shape_is_refused(source: Path) -> None:
    wide = LatentDiffusion(config(unet=config().unet.override(["channels=24"])), autoencoder(), joint())
    with pytest.raises(UserError, match=r"only .* have their shape in"):
        init_latent(wide, str(source))


def test_latents_must_mean_the_same(source: Path) -> None:
    with pytest.raises(UserError, match="another first stage"):
        init_latent(LatentDiffusion(config(), autoencoder(seed=9), joint()), str(source))


def test_what_is_concatenated_wants_images() -> None:
    shape = config(unet=config().unet.override(["concat_channels=5"]))
    with pytest.raises(UserError, match=r"precomputed must be none"):
        LatentTraining(model=shape, precomputed="cache/x")


def test_a_run_that_resumes_does_not_open_the_model_it_was_initialised_from(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tmp_path / "first"
    FirstStage(FirstStageConfig(network=config().autoencoder), autoencoder()).save(first)
    training = LatentTraining(model=repainter().config, autoencoder=str(first), init_from=str(source))
    data = ImageData({})
    monkeypatch.setattr(data, "captions", lambda *splits, **how: CAPTIONS)
    initialised = training.build(data, seed=0)
    monkeypatch.setattr(init_from, "open_model", None)  # an error where it is called
    resumed = training.build(data, seed=0, resuming=True)
    assert initialised.module.state_dict().keys() == resumed.module.state_dict().keys()
    with pytest.raises(TypeError):
        training.build(data, seed=0)
