"""Distilling a latent model into one of few steps: consistency distillation, or progressive distillation.

    consistency   |f(z_t, t) - f(z_s, s)|, z_s by a guided DDIM step of the teacher (Song et al. 2023; Luo et al. 2023)
    progressive   |x_0(z_t, t) - x~|, where x~ takes DDIM to where some steps of the teacher's end (Salimans & Ho 2022)
    distillation  the same at each z_t of the teacher's own sampling from noise, which `diptych precompute` kept
                  (knowledge distillation, Luhman & Luhman 2021, of each of the student's steps)

What is trained is a whole U-Net or a LoRA on the teacher's (Luo et al. 2023b); the weight of classifier-free guidance
is distilled in, so that the student needs one call a step.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from diptych.core.config import Within
from diptych.core.counter_random import Draws, draws_of
from diptych.core.devices import settled
from diptych.core.errors import UserError
from diptych.core.random import DROP, NOISE, TIME
from diptych.data.caption_text import Fit
from diptych.data.dataset import DataConfig
from diptych.diffusion.conditions import cat_conditions
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.samplers import SAMPLERS, consistency_scalings
from diptych.diffusion.times import timesteps
from diptych.encoders.configs import ClipTextConfig, build_encoder
from diptych.models.latent_config import LatentConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.lora import adapters
from diptych.networks.lora_training import LoraConfig, LoraLayers, sharing_weights
from diptych.networks.unet import UNet
from diptych.pretrained.adapted_model import (
    FILE,
    AdaptedConfig,
    AdaptedModel,
    base_fingerprint,
    few_step_config,
    latent_config,
    read_adapted,
)
from diptych.pretrained.load import find, open_model, read_config
from diptych.pretrained.lora_files import LoRA, named_layers
from diptych.training.init_from import init_latent
from diptych.training.model_training import SecondStageTraining
from diptych.training.precompute import Kept
from diptych.training.read_text import Embedding
from diptych.training.system import Precomputing, TrainingData, first_weights, require_side
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trajectories import TRAILING, Teacher
from diptych.weights.fingerprint import fingerprint

SAMPLER = {"consistency": "lcm", "progressive": "ddim", "distillation": "ddim"}
"""What a student of each method is sampled with."""
STARTS = ("latent", "trajectory")
"""What a batch may have in the place of images."""
VALIDATED = 8
"""At most so many times of the validation loss."""


@dataclass(frozen=True, kw_only=True)
class FewStepTraining(SecondStageTraining):
    """A student of few steps, and the latent model that is its teacher."""

    kind: Literal["few-steps"] = "few-steps"
    """Which system this is."""
    teacher: str = "latent"
    """The latent model to distil: a run or model folder, a published model, or one in the package. The student has its
    shape, text encoder and first stage, and begins as it."""
    method: Literal["consistency", "progressive", "distillation"] = "consistency"
    """Consistency distillation, sampled with `lcm`; progressive distillation, or knowledge distillation of trajectories
    that `diptych precompute` kept, sampled with `ddim`."""
    steps: Annotated[int, Within(1, 1000)] = 4
    """Sampling steps of the student."""
    teacher_steps: Annotated[int, Within(2, 1000)] = 48
    """Steps of the teacher, DDIM's but for `distillation`, a multiple of `steps`. consistency: neighbours among their
    times are made to agree. progressive, distillation: so many of them as are in one of the student's are done at once
    (Salimans & Ho 2022, Alg. 2: two); with distillation one is possible, a step of guided calls in one call."""
    teacher_sampler: str | None = None
    """distillation only: the sampler of the trajectories, of one call a step; none is the teacher's own."""
    trajectories: Annotated[int, Within(1, 2**31)] = 5000
    """distillation only: of how many training captions, evenly spaced, `diptych precompute` keeps where the teacher's
    sampling leads; and for validation of a sixteenth as many held-out ones."""
    guidance: float | None = None
    """Weight of classifier-free guidance that is distilled in; none is the teacher's own, 1 none at all."""
    lora: LoraConfig | None = None
    """Train a LoRA on the teacher's U-Net, or none to train all of its weights."""
    init_from: str | None = None
    """Another student of the same teacher to begin as: its run or folder, one of more steps for instance (Salimans & Ho
    2022, section 3). None begins as the teacher. A LoRA begins as one of its own rank."""
    huber: Annotated[float, Within(0)] = 0.001
    """consistency only: c of the pseudo-Huber loss sqrt(d^2 + c^2) - c (Song & Dhariwal 2023, Eq. 7); 0 is d^2."""
    caption_dropout: Annotated[float, Within(0, 1)] = 0.0
    """Share of the captions replaced by the empty one."""
    prompts: tuple[str, ...] = ()
    """Fixed prompts of the sample grid; none for no grid."""
    save_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """How the finished student's matrices and kernels are stored."""
    precomputed: str | None = None
    """Folder that `diptych precompute` wrote, or none to encode images and captions at every step."""
    embed_text: Embedding = "auto"
    """When a frozen text encoder reads the captions, as in the training of a latent model."""

    def check(self) -> None:
        least = self.steps if self.method == "distillation" else self.steps + 1  # there guidance alone is distilled
        whole = self.teacher_steps % self.steps == 0 and self.teacher_steps >= least
        more = "" if least == self.steps else ", and more"
        self.require(whole, "teacher_steps", f"be a multiple of steps ({self.steps}){more}")
        known = self.teacher_sampler is None or self.teacher_sampler in SAMPLERS
        self.require(known, "teacher_sampler", f"be one of {', '.join(SAMPLERS)}")
        if self.method == "distillation":
            self.require(self.caption_dropout == 0, "caption_dropout", "be 0: each trajectory is one of its caption")
        else:
            self.require(self.teacher_sampler is None, "teacher_sampler", "be none but for method=distillation")

    @property
    def kept(self) -> Kept:  # type: ignore[override]
        return "trajectories" if self.method == "distillation" else "latents"

    @property
    def model(self) -> LatentConfig:  # type: ignore[override]
        """The student's config. A `UserError` where there is no teacher."""
        return few_step_config(latent_config(self.teacher), self.steps, SAMPLER[self.method], TRAILING)

    @property
    def autoencoder(self) -> str:  # type: ignore[override]
        return self.teacher

    @property
    def bucket_multiple(self) -> int | None:
        return None

    @property
    def text_beside(self) -> bool:
        """Whether the text encoder came with a published teacher and is opened with it alone."""
        text = self.model.text
        return isinstance(text, ClipTextConfig) and text.path is None

    @property
    def precomputable(self) -> bool:
        return not self.text_beside

    def caption_fit(self) -> Fit | None:
        return None if self.text_beside else super().caption_fit()  # else the opened encoder cuts captions

    def check_data(self, data: DataConfig) -> None:
        try:
            size = self.model.size
        except UserError:  # a teacher that is still to be trained: it is said when the run begins
            return
        require_side(data, "the teacher's size", size)

    def kept_shape(self) -> tuple[int, ...]:
        first_stage, side = self.model.autoencoder, self.model.latent_size
        if self.kept == "trajectories":
            return (self.teacher_steps + 1, first_stage.latent_channels, side, side)
        return (first_stage.moment_channels, side, side)

    def precomputing(self) -> Precomputing:
        if self.kept == "latents":
            return super().precomputing()
        text = build_encoder(self.model.text) if self.texts_precomputable else None
        return Precomputing(self.sampled(self.opened()), text, self.kept, self.trajectories)

    def sampled(self, teacher: LatentDiffusion) -> Teacher:
        """The teacher as it is sampled for its trajectories."""
        return Teacher(teacher, self.teacher_steps, self.teacher_sampler, self.guidance)

    def opened(self) -> LatentDiffusion:
        """The teacher. A `UserError` where it is no latent model."""
        teacher = open_model(self.teacher)
        if not isinstance(teacher, LatentDiffusion):
            raise UserError(f"{self.teacher} is no latent model: it can be no teacher")
        return teacher

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> FewStepTask:
        teacher = self.opened()
        self.require_frozen()
        if self.kept == "trajectories":
            wanted = "name the folder that `diptych precompute` wrote: trajectories are sampled once, and kept"
            self.require(self.precomputed is not None, "precomputed", wanted)
        made_by = self.sampled(teacher) if self.kept == "trajectories" else teacher.autoencoder
        data.encoded_by(made_by, self.kept, self.kept_shape())
        if teacher.joint_text is not None or self.text_beside:
            text = teacher.text
            if isinstance(text, nn.Module):
                text.requires_grad_(False)
        else:
            text = self.reader(data, seed)
        with first_weights(seed):
            task = FewStepTask(self, teacher, text)
        if self.init_from is not None and not resuming:
            task.begin_as(self.init_from)
        return task


class FewStepTask(DiffusionTask):
    """The `Trainable` of a student, which starts as its teacher and has its own copy of what is changed."""

    def __init__(self, config: FewStepTraining, teacher: LatentDiffusion, text: Any) -> None:
        """text: what reads the captions, for both."""
        scale = teacher.config.guidance if config.guidance is None else config.guidance
        self.scale = scale if teacher.config.guidable else 1.0
        self.teacher = teacher.unet.eval().requires_grad_(False)
        unet = copy.deepcopy(self.teacher) if config.lora is None else sharing_weights(self.teacher)
        student = few_step_config(teacher.config, config.steps, SAMPLER[config.method], TRAILING)
        system = LatentDiffusion(student, teacher.autoencoder, text, unet).to(teacher.scale.device)
        system.scale.copy_(teacher.scale)
        system.initialised = True
        described = DiffusionTraining(caption_dropout=0.0, prompts=config.prompts)
        super().__init__(system, described)
        self.system: LatentDiffusion = system
        self.distillation = config
        self.lora = None if config.lora is None else lora_layers(system.eval(), config.lora)
        if self.lora is None:
            unet.requires_grad_(True)
        else:
            self.module = self.lora
        self.times = timesteps(system.schedule, config.teacher_steps, "trailing")  # (K + 1,), falling

    def begin_as(self, source: str) -> None:
        """Take the weights of another student of this teacher. A `UserError` where it is none, or of another shape."""
        if self.lora is None:
            return init_latent(self.system, source)
        if not ((path := find(source)) / FILE).is_file():
            raise UserError(f"{source} is no folder of a LoRA: a student that is one cannot begin as it")
        if not read_adapted(read_config(path), path).fits(self.system):
            raise UserError(f"{source} is a student of another teacher than {self.distillation.teacher}")
        given = LoRA.open(path / FILE).changes(self.system)
        mine = {layer: each.change for layer in self.system.unet.modules() for _, each in adapters(layer)}
        shapes, own_shapes = ({layer: one.down.shape for layer, one in each.items()} for each in (given, mine))
        if shapes != own_shapes:
            raise UserError(f"{source} is a LoRA of other layers or another rank than FewStepTraining.lora")
        with torch.no_grad():
            for layer, change in given.items():
                to = mine[layer]
                to.down.copy_(change.down)
                to.up.copy_(change.up * (change.alpha / change.rank) / (to.alpha / to.rank))

    @property
    def facts(self) -> dict[str, Any]:
        """What a run is not to be resumed without."""
        return {"teacher": fingerprint(self.teacher)}

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        draws, config = draws_of(batch), self.distillation
        dropped = draws.host.uniform(DROP) < config.caption_dropout
        points = self.points
        place = (draws.uniform(TIME).double() * points).long().clamp(max=points - 1)  # (B,)
        return self.errors(batch, draws, place, dropped), {}

    def errors(self, batch: dict[str, Any], draws: Draws, place: Tensor, dropped: Tensor) -> Tensor:
        """(B,) losses of images whose student is asked at these places (B,) of its times."""
        device = next(batch[name] for name in (*STARTS, "picture") if name in batch).device
        settled(self.system, device)
        self.times, place = self.times.to(device), place.to(device)
        if "trajectory" in batch:
            cond = self.system.embed(self.system.kept_captions(batch, dropped))
            return self.along(batch["trajectory"].float(), place, cond)
        x0, cond = self.system.prepare(batch, draws, dropped)
        noise = draws.normal(x0, NOISE)
        return getattr(self, self.distillation.method)(x0, noise, place, cond)

    def guided(self, z: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The teacher's x_0 at times t (B,), with the guidance that is distilled. Unlike that of sampling it asks no
        tensor for a value, for which the host would wait."""
        teacher = Denoiser(settled(self.teacher, z.device), self.system.schedule, self.system.config.prediction)
        if self.scale == 1:
            return teacher(z, t, cond)
        kept = {"concat": cond["concat"]} if "concat" in cond else {}
        both = cat_conditions(cond, {**self.system.embed([""]), **kept}, len(z))
        with_prompt, without = teacher(torch.cat([z, z]), t.repeat(2), both).chunk(2)
        return without + self.scale * (with_prompt - without)

    def consistency(self, x0: Tensor, noise: Tensor, place: Tensor, cond: Cond) -> Tensor:
        """Latent consistency distillation (Luo et al. 2023, Alg. 1) without a moving average in its target (Song &
        Dhariwal 2023, section 3.2)."""
        student, t, s = self.system.denoiser, self.times[place], self.times[place + 1]
        z = student.add_noise(x0, noise, t)
        with torch.no_grad():
            earlier = self.ddim(z, self.guided(z, t, cond), t, s)
            least = s.clamp(min=1 / self.system.schedule.steps)  # at s = 0 a consistency function gives its input
            target = self.consistent(earlier, least, student(earlier, least, cond))
            target = torch.where(spread(s == 0, z), earlier, target)
        difference = self.consistent(z, t, student(z, t, cond)) - target
        c = self.distillation.huber
        error = difference.square() if c == 0 else (difference.square() + c**2).sqrt() - c
        return error.flatten(1).mean(1)

    def consistent(self, z: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """f(z, t) from the estimate of x_0: z itself at t = 0 (Luo et al. 2023, Eq. 9)."""
        skip, out = consistency_scalings(self.system.schedule.network_time(t))
        return spread(skip, z) * z + spread(out, z) * x0

    def progressive(self, x0: Tensor, noise: Tensor, place: Tensor, cond: Cond) -> Tensor:
        """Salimans & Ho 2022, Alg. 2, with any number of the teacher's steps in one of the student's."""
        t, end = self.ends(place)
        z = self.system.denoiser.add_noise(x0, noise, t)
        with torch.no_grad():
            then = z
            for step in range(self.jump):
                now, next_ = self.times[place * self.jump + step], self.times[place * self.jump + step + 1]
                then = self.ddim(then, self.guided(then, now, cond), now, next_)
        return self.to_there(z, then, t, end, cond)

    def along(self, trajectory: Tensor, place: Tensor, cond: Cond) -> Tensor:
        """`progressive` at points of trajectories (B, K + 1, C, h, w), which the teacher took already."""
        rows = torch.arange(len(place), device=place.device)
        z, then = trajectory[rows, place * self.jump], trajectory[rows, (place + 1) * self.jump]
        return self.to_there(z, then, *self.ends(place), cond)

    @property
    def points(self) -> int:
        """How many of its times the loss looks at."""
        config = self.distillation
        return config.teacher_steps if config.method == "consistency" else config.steps

    @property
    def jump(self) -> int:
        """The teacher's steps in one of the student's."""
        return self.distillation.teacher_steps // self.distillation.steps

    def ends(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """The times (B,) at which these of the student's steps begin and end."""
        return self.times[place * self.jump], self.times[(place + 1) * self.jump]

    def to_there(self, z: Tensor, then: Tensor, t: Tensor, end: Tensor, cond: Cond) -> Tensor:
        """(B,) losses of the student, whose step from z at times t is to lead to `then`."""
        (alpha, sigma), (alpha_end, sigma_end) = self.levels(t, z), self.levels(end, z)
        ratio = sigma_end / sigma
        target = (then - ratio * z) / (alpha_end - ratio * alpha)
        weight = (alpha / sigma).square().clamp(min=1)  # truncated SNR (Eq. 9)
        return (weight * (self.system.denoiser(z, t, cond) - target).square()).flatten(1).mean(1)

    def ddim(self, z: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """z at times s (B,), by DDIM from times t (B,)."""
        (alpha, sigma), (alpha_then, sigma_then) = self.levels(t, z), self.levels(s, z)
        return alpha_then * x0 + sigma_then / sigma * (z - alpha * x0)

    def levels(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at times t (B,), each (B, 1, 1, 1)."""
        alpha, sigma = self.system.schedule.alpha_sigma(t)
        return spread(alpha, like), spread(sigma, like)

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """The loss at some of its times with fixed noise, and their mean."""
        draws, count, config = draws_of(batch), len(batch["seed"]), self.distillation
        none = torch.zeros(count, dtype=torch.bool)
        points = self.points
        losses: dict[str, float] = {}
        for place in range(0, points, max(1, points // VALIDATED)):
            at = float(self.times[place * (config.teacher_steps // points)])
            losses[f"loss_at_{at:.4f}"] = self.errors(batch, draws, torch.full((count,), place), none).mean().item()
        return {"loss": sum(losses.values()) / len(losses), **losses}

    def save(self, folder: Path) -> None:
        config = self.distillation
        if self.lora is None:
            return self.system.save(folder, config.save_dtype)
        stated = AdaptedConfig(
            base=config.teacher,
            base_weights=base_fingerprint(self.system),
            steps=config.steps,
            sampler=SAMPLER[config.method],
            times=TRAILING,
        )
        AdaptedModel.save(folder, self.system, self.lora.named_changes(), stated, config.save_dtype)


def lora_layers(system: LatentDiffusion, config: LoraConfig) -> LoraLayers:
    """The changes of the layers of a latent model's U-Net. A `UserError` where its layers have no names in files."""
    if not isinstance(system.unet, UNet):
        raise UserError(f"FewStepTraining.lora must be none: a {type(system.unet).__name__} has no LoRA files")
    names = {names[0]: layer for names, layer in named_layers(system)}
    return config.build({name.removeprefix("unet."): one for name, one in names.items() if name.startswith("unet.")})


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to multiply what is like this; truth values stay what they are."""
    values = values.to(like.device) if values.dtype == torch.bool else values.to(like)
    return values.view(-1, *[1] * (like.ndim - 1))
