"""Generated images that are measured while a model is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.images import psnr, to_images, to_tensor
from diptych.metrics.feature_networks import ClipFeatures
from diptych.metrics.frechet import frechet_distance
from diptych.metrics.kernels import cubic, unbiased_mmd
from diptych.models.judge import load_judge
from diptych.training.trainable import Generated
from diptych.training.trainer import train
from diptych.weights.lazy import load_weights
from tests.pretrained.test_load_guide import clip_folder
from tests.training import toy_blocks
from tests.training.processes import two_processes
from tests.training.test_trainer import metrics
from tests.training.toy import Toy, batch_at, settings

COUNT, SIDE = 5, 12
EVALUATED = {"evaluation": {"images": COUNT, "every": 4, "batch": 2}}
SHORT = {
    "steps": 10,
    "schedule": "constant",
    "log_every": 5,
    "validate_every": 5,
    "sample_every": 0,
    "checkpoint_every": 5,
}
KEYS = {"frechet_judge", "kid_judge", "seconds"}


def real_images(batch: dict[str, Any]) -> list[Image.Image]:
    """(SIDE, SIDE) images that follow from the points of a batch."""
    drawn = [torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(int(s))) for s in batch["seed"]]
    return to_images(torch.stack(drawn) * 2 - 1)


class Painter(Toy):
    """A toy that generates: images from its weights, the seed, and PyTorch's own generator."""

    paired = False
    fail: Exception | None = None
    decoded = False
    made: list[tuple[list[int], Generated]]

    def generated(self, batch: dict[str, Any], seeds: list[int]) -> Generated:
        assert not self.module.training
        assert not torch.is_grad_enabled()
        if self.fail is not None and 3 in seeds:
            raise self.fail
        drawn = torch.rand(3, SIDE, SIDE)  # of PyTorch's own generator
        shift = 200 * next(self.module.parameters()).mean()
        images = to_images(torch.stack([(3 * drawn + shift + seed).sin() for seed in seeds]))
        captions = (
            None
            if self.paired
            else [f"a {'red' if seed % 2 else 'blue'} apple" + " again" * 50 * (seed == 2) for seed in seeds]
        )
        found = Generated(images, real_images(batch), self.paired, captions, self.decoded)
        self.made = [*getattr(self, "made", []), (seeds, found)]
        return found


def painter(paired: bool = False, fail: Exception | None = None) -> Painter:
    task = Painter(dropout=0.2)
    task.paired, task.fail = paired, fail
    return task


def evaluations(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k != "seconds"} for one in lines if one["kind"] == "evaluation"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Painter]:
    folder, task = tmp_path_factory.mktemp("evaluated"), painter()
    train(task, batch_at, settings(**SHORT, **EVALUATED), folder, batch_at)
    return folder, task


def test_training_ends_in_the_same_weights_with_and_without(evaluated: tuple[Path, Painter], tmp_path: Path) -> None:
    train(painter(), batch_at, settings(**SHORT), tmp_path, batch_at)
    assert not evaluations(tmp_path)
    for name in ("loss", "grad_norm"):
        assert metrics(tmp_path, name) == metrics(evaluated[0], name)
    assert metrics(tmp_path, kind="validation") == metrics(evaluated[0], kind="validation")
    here, there = (load_weights(folder / "model") for folder in (tmp_path, evaluated[0]))
    assert here.keys() == there.keys() and all(torch.equal(here[key], there[key]) for key in here)


def test_the_numbers_are_those_of_all_images_together(evaluated: tuple[Path, Painter]) -> None:
    folder, task = evaluated
    assert [line["step"] for line in evaluations(folder)] == [4, 8, 10]
    assert [seeds for seeds, _ in task.made] == [[0, 1], [2, 3], [4]] * 3
    judge, last = load_judge(), [made for _, made in task.made[-3:]]
    made, real = ([one for part in side for one in part] for side in ([p.images for p in last], [p.real for p in last]))
    one, other = (judge.features(side).numpy().astype(np.float64) for side in (made, real))
    words = judge.captions([caption for part in last for caption in part.captions or ()])
    found = evaluations(folder)[-1]
    assert found["frechet_judge"] == pytest.approx(frechet_distance(one, other), rel=1e-4)
    assert found["kid_judge"] == pytest.approx(unbiased_mmd(one, other, cubic), rel=1e-3)
    for name, side in (("alignment_judge", made), ("alignment_judge_real", real)):
        assert found[name] == pytest.approx((judge.encode_images(side) * words).sum(1).mean().item(), abs=1e-5)
    assert found.keys() - {"step", "kind"} == KEYS - {"seconds"} | {"alignment_judge", "alignment_judge_real"}
    assert evaluations(folder)[0]["frechet_judge"] != found["frechet_judge"], "the weights have changed"


def test_a_run_that_goes_on_measures_the_same(evaluated: tuple[Path, Painter], tmp_path: Path) -> None:
    train(painter(), batch_at, settings(**SHORT | {"steps": 5}, **EVALUATED), tmp_path, batch_at)
    train(painter(), batch_at, settings(**SHORT, **EVALUATED), tmp_path, batch_at)
    assert [line for line in evaluations(tmp_path) if line["step"] != 5] == evaluations(evaluated[0])


def test_images_that_ought_to_be_equal_are_compared_in_pairs(tmp_path: Path) -> None:
    task = painter(paired=True)
    train(task, batch_at, settings(**SHORT | {"steps": 2}, **EVALUATED), tmp_path, batch_at)
    parts = [made for _, made in task.made]
    pairs = [psnr(to_tensor(part.images), to_tensor(part.real)) for part in parts]
    (found,) = evaluations(tmp_path)
    assert found["psnr"] == pytest.approx(torch.cat(pairs).mean().item(), rel=1e-5)
    assert found.keys() - {"step", "kind"} == KEYS - {"seconds"} | {"psnr", "ssim", "perceptual_judge"}


def test_distances_to_decoded_images_have_another_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = painter()
    task.decoded = True
    train(task, batch_at, settings(**SHORT | {"steps": 8}, **EVALUATED), tmp_path, batch_at)
    assert capsys.readouterr().err.count("what the first stage decodes") == 1
    for found in evaluations(tmp_path):
        assert {"frechet_judge_decoded", "kid_judge_decoded", "alignment_judge"} <= found.keys()
        assert "frechet_judge" not in found


def test_clip_scores_images_and_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"images": 3, "every": 4, "features": "clip", "weights": str(clip_folder(tmp_path))}
    task = painter()
    train(task, batch_at, settings(**SHORT | {"steps": 2}, evaluation=asked), tmp_path / "run", batch_at)
    ((_, made),) = task.made
    clip = ClipFeatures(tmp_path)
    words, cut = clip.captions(made.captions or [])
    assert cut == 1
    assert "1 of 3 captions are longer than CLIP reads" in capsys.readouterr().err
    (found,) = evaluations(tmp_path / "run")
    assert {"frechet_clip", "kid_clip"} <= found.keys()
    for name, side in (("clip_score", made.images), ("clip_score_real", made.real)):
        features = clip(torch.stack([clip.prepare(image) for image in side])).numpy()
        assert found[name] == pytest.approx(100 * (features * words).sum(1).mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("what the network gives is not finite"), "what the network gives is not finite"),
        (RuntimeError("CUDA out of memory\nmuch more"), r"lower training.evaluation.batch \(now 2\)"),
        (ValueError("odd\nmore"), "ValueError: odd;"),
    ],
)
def test_a_sampler_that_fails_stops_in_one_line_and_the_run_goes_on_without(
    error: Exception, said: str, tmp_path: Path
) -> None:
    changes = SHORT | {"steps": 6, "checkpoint_every": 3}
    with pytest.raises(UserError, match=f"evaluation has failed: .*{said}") as stopped:
        train(painter(fail=error), batch_at, settings(**changes, **EVALUATED), tmp_path, batch_at)
    assert len(str(stopped.value).splitlines()) == 1 and "training.evaluation.images=0" in str(stopped.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]
    train(painter(fail=error), batch_at, settings(**changes), tmp_path, batch_at)
    assert (tmp_path / "model").is_dir()


class Counted:
    """Held-out examples that say how many they are."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"count": 4}

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        return batch_at(positions)


def test_what_cannot_be_evaluated_is_refused_before_the_run(tmp_path: Path) -> None:
    asked = settings(**SHORT, **EVALUATED)
    with pytest.raises(UserError, match="generates nothing"):
        train(Toy(), batch_at, asked, tmp_path / "a", batch_at)
    with pytest.raises(UserError, match=r"raise data\.held_out"):
        train(painter(), batch_at, asked, tmp_path / "a")
    with pytest.raises(UserError, match="at most 4, as many as are held out, not 5"):
        train(painter(), batch_at, asked, tmp_path / "a", Counted())
    with pytest.raises(UserError, match="weights must name the weights of inception"):
        settings(evaluation={"images": 2, "features": "inception"})
    with pytest.raises(UserError, match="no weights of InceptionV3 at"):
        missing = {"images": 2, "features": "inception", "weights": str(tmp_path / "none")}
        train(painter(), batch_at, settings(evaluation=missing), tmp_path / "a", batch_at)
    assert not (tmp_path / "a").exists()


class PaintingBlocks(toy_blocks.BlocksTask):
    """Sharded weights that all processes read while they generate different numbers of images."""

    def generated(self, batch: dict[str, Any], seeds: list[int]) -> Generated:
        colours = [self.module.encode(image[None]).tanh().view(3, 1, 1) for image in batch["picture"]]
        images = to_images(torch.stack([colour.expand(3, SIDE, SIDE) for colour in colours]))
        return Generated(images, real_images(batch), False)


def shared(folder: str, environment: dict[str, str]) -> None:
    """Runs of two processes, replicated and sharded; and one in which a sampler fails in the second alone."""
    os.environ |= environment
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for shard in ("no", "fsdp"):
        asked = toy_blocks.settings(steps=4, shard=shard, **EVALUATED)
        train(PaintingBlocks(), toy_blocks.batch_at, asked, Path(folder, shard), toy_blocks.batch_at)
    failing = painter(fail=ValueError("odd"))
    with pytest.raises(UserError, match="evaluation has failed: ValueError: odd"):
        train(failing, batch_at, settings(**SHORT, **EVALUATED), Path(folder, "failed"), batch_at)
    dist.destroy_process_group()


def test_two_processes_share_the_images(tmp_path: Path) -> None:
    asked = toy_blocks.settings(steps=4, **EVALUATED)
    train(PaintingBlocks(), toy_blocks.batch_at, asked, tmp_path / "alone", toy_blocks.batch_at)
    assert two_processes(shared, str(tmp_path)) == [0, 0]
    alone = evaluations(tmp_path / "alone")
    assert len(alone) == 1
    for name in ("no", "fsdp"):
        for found, expected in zip(evaluations(tmp_path / name), alone, strict=True):
            assert found.pop("kind") == expected["kind"]
            assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-3, abs=1e-4)
