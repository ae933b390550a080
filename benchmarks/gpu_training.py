"""Speed of training on a GPU: Stable Diffusion 1's U-Net beside diffusers' training step, and the emoji latent model.

    python -m benchmarks.gpu_training --out benchmarks/results/gpu-training.json
    python -m benchmarks.gpu_training --toy --out /tmp/toy.json      the same on a CPU, with tiny networks

Ours is the training loop of `diptych train`, with data in memory: images a second are those that it logs. Theirs is
what diffusers' `train_text_to_image.py` does in a step with latents and text embeddings at hand, before and after ours
in one process, with the same weights; outputs are compared before anything is timed. FLOPs are counted from the
network, a training step as three forward passes. The results so far are written after each part; what is compiled comes
last, as that takes a minute before the first step.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stand_ins import Nothing, RandomText
from diptych.core.errors import UserError
from diptych.encoders.cache import EmbeddedTexts
from diptych.models.latent_config import LatentConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.key_map import published
from diptych.pretrained.stable_diffusion.config_json import unet_json
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_unet
from diptych.recipes import get
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig

NOMINAL = {"H100": 989.4, "H200": 989.4, "A100": 312.0}
"""Dense bf16 TFLOP/s by the makers' data sheets."""
FASTEST = {"compile": "blocks", "channels_last": True, "cuda_graphs": True}
GRAPHS = {"channels_last": True, "cuda_graphs": True}
"""Without a compiler, which would take the first minute."""
AGREE = {"float32": 1e-3, "bfloat16": 3e-2}
"""Largest relative error of outputs: float32 matrices are multiplied as TF32 on a GPU. It can be 0: both networks call
the same kernels of PyTorch in the same order."""
CAPTIONS = 512


class Enough(Exception):
    """Raised from the data when a measurement is over, so that no checkpoint of it is saved."""


@dataclasses.dataclass
class Case:
    """What is trained."""

    config: LatentConfig
    size: int
    """Side of its latents."""
    batch: int
    tokens: int
    device: torch.device

    def model(self, unet: nn.Module | None = None) -> LatentDiffusion:
        width = self.config.unet.context_width or 1
        text = EmbeddedTexts.compute(RandomText(width, self.tokens), [f"caption {i}" for i in range(CAPTIONS)])  # type: ignore[arg-type]
        small = dataclasses.replace(self.config.autoencoder, channels=32, blocks=1, norm_groups=32)  # never called
        with self.device:
            unet = unet or self.config.unet.build()
        return LatentDiffusion(self.config, small.build(), text, unet)  # type: ignore[arg-type]

    def batch_at(self, positions: list[int]) -> dict[str, Any]:
        shape = (len(positions), 2 * self.config.autoencoder.latent_channels, self.size, self.size)
        if not hasattr(self, "latents") or self.latents.shape != shape:
            self.latents = torch.randn(shape).half() * 0.5
        captions = [f"caption {p % CAPTIONS}" for p in positions]
        return {"latent": self.latents, "caption": captions, "seed": torch.tensor(positions), "key": positions}

    @property
    def flop(self) -> float:
        """Of a training step for one image, in TFLOP."""
        with torch.device("meta"):
            unet = self.config.unet.build()
            x = torch.empty(1, self.config.unet.in_channels, self.size, self.size)
            cond: dict[str, Tensor] = {"context": torch.empty(1, self.tokens, self.config.unet.context_width or 1)}
            if self.config.unet.pooled_width:
                cond["pooled"] = torch.empty(1, self.config.unet.pooled_width)
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                unet(x, torch.empty(1), **cond)
        return 3 * counter.get_total_flops() / 1e12


def ours(case: Case, model: LatentDiffusion, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Images a second of the training loop, over so many seconds after it has warmed up."""
    if case.device.type != "cuda":
        settings = {"precision": "fp32"}  # what speeds a GPU up takes minutes on a CPU
    every = 5 if case.device.type == "cuda" else 1
    limit = [time.monotonic() + 8 * seconds + 60]
    config = TrainingConfig(
        steps=10**7, batch_size=case.batch, log_every=every, validate_every=0, sample_every=0, checkpoint_every=10**7,
        device=str(case.device), workers=1, clip=1.0, betas=(0.9, 0.999), **settings,
    )  # fmt: skip

    def batch_at(positions: list[int]) -> dict[str, Any]:
        if positions[0] == 3 * every * case.batch:  # two reports are over: kernels are chosen, graphs captured
            limit[0] = time.monotonic() + seconds
        if time.monotonic() > limit[0] and positions[0] >= 6 * every * case.batch:
            raise Enough
        return case.batch_at(positions)

    task = DiffusionTask(model, DiffusionTraining(caption_dropout=0.1))
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(Enough):
            train(task, batch_at, config, Path(folder) / "run")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines[2:]]
    found = {"images_per_second": statistics.median(rates), "best": max(rates), "steps": len(lines) * every}
    return {**found, "settings": settings}


def compare(ours: nn.Module, theirs: Callable[[Tensor, Tensor, Tensor], Tensor], case: Case) -> dict[str, float]:
    """How far two networks are from each other, relative to the second. Raises a `UserError` where that is too far."""
    device, found = case.device, {}
    x = torch.randn(2, case.config.unet.in_channels, case.size, case.size, device=device)
    context = torch.randn(2, case.tokens, case.config.unet.context_width or 1, device=device)
    times = torch.tensor([3.0, 700.0], device=device)
    for name, limit in AGREE.items():
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
            a, b = ours(x, times, context=context).float(), theirs(x, times, context).float()
        found[name] = ((a - b).norm() / b.norm()).item()
        if not found[name] <= limit:
            raise UserError(f"the two networks differ by {found[name]:.1e} in {name}: they are not compared")
    return found


class Theirs:
    """diffusers' network, and its training script's step."""

    def __init__(self, case: Case) -> None:
        import diffusers

        self.case, self.version = case, diffusers.__version__
        with case.device:
            self.unet: Any = diffusers.UNet2DConditionModel.from_config(unet_json(case.config.unet, case.size))  # type: ignore[arg-type]
        self.scheduler = diffusers.DDPMScheduler(  # type: ignore[attr-defined]
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
        )

    def agree(self, network: nn.Module) -> dict[str, float]:
        """Give it our weights; the relative errors of its output. Raises a
        `UserError` where they are too large."""
        with torch.no_grad():  # layers that begin at zero would hide all before them
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        self.unet.load_state_dict(published(diffusers_unet(self.case.config.unet), network.state_dict()))  # type: ignore[arg-type]
        return compare(network, lambda x, times, context: self.unet(x, times, context, return_dict=False)[0], self.case)

    def images_per_second(self, seconds: float) -> dict[str, Any]:
        """Of noise, network, loss, backward, clipping, AdamW and the report of each step's loss."""
        device, case = self.case.device, self.case
        self.unet.train()
        optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-4, weight_decay=1e-2)
        latents = torch.randn(case.batch, case.config.unet.in_channels, case.size, case.size, device=device)
        context = torch.randn(case.batch, case.tokens, case.config.unet.context_width or 1, device=device)
        steps, began, limit = 0, 0.0, time.monotonic() + 8 * seconds + 60
        while steps < 4 or time.monotonic() < limit:
            if steps == 3:
                synchronize(device)
                began, limit = time.monotonic(), time.monotonic() + seconds
            noise = torch.randn_like(latents)
            times = torch.randint(0, 1000, (case.batch,), device=device)
            noisy = self.scheduler.add_noise(latents, noise, times)  # type: ignore[arg-type]
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                predicted = self.unet(noisy, times, context, return_dict=False)[0]
            loss = nn.functional.mse_loss(predicted.float(), noise.float())
            loss.backward()
            nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.detach().item()
            steps += 1
        synchronize(device)
        return {"images_per_second": (steps - 3) * case.batch / (time.monotonic() - began), "steps": steps - 3}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_tflops(device: torch.device, size: int) -> float:
    """What a bf16 matrix product reaches: the most that a network could."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(times[3:]) / 1e12


def beside_peak(case: Case, found: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """The same with TFLOP/s, and what share of the card that is."""
    tflops = found["images_per_second"] * case.flop
    shares = {f"share_of_{name}": tflops / peak for name in ("matmul", "nominal") if (peak := about.get(name))}
    return {**found, "tflops": tflops, **shares}


def cases(toy: bool, device: torch.device) -> tuple[Case, Case]:
    """Stable Diffusion 1 at 512 px, and the emoji latent model."""
    systems: list[Any] = [get(name).system for name in ("sd1", "emoji-latent")]
    sd, emoji = (system.model for system in systems)
    if not toy:
        return Case(sd, 64, 32, 77, device), Case(emoji, 16, 512, 20, device)
    narrow = {"channels": 32, "multipliers": (1, 2), "attention_levels": (0,), "blocks": 1}
    sd = dataclasses.replace(sd, unet=dataclasses.replace(sd.unet, **narrow))
    emoji = dataclasses.replace(emoji, unet=dataclasses.replace(emoji.unet, channels=32, blocks=1))
    return Case(sd, 8, 2, 5, device), Case(emoji, 8, 4, 5, device)


def parts(toy: bool, seconds: float, device: torch.device, about: dict[str, Any]) -> Iterator[tuple[str, Callable]]:
    """The measurements, the shorter first; each gets its share of the seconds."""
    sd, emoji = cases(toy, device)
    yield "emoji", lambda: beside_peak(emoji, ours(emoji, emoji.model(), GRAPHS, seconds * 0.08), about)
    yield "emoji-eager", lambda: beside_peak(emoji, ours(emoji, emoji.model(), {}, seconds * 0.05), about)

    def host() -> dict[str, Any]:
        found = ours(emoji, emoji.model(Nothing()), {}, seconds * 0.03)
        return {"milliseconds_a_step": 1000 * emoji.batch / found["images_per_second"], **found}

    yield "emoji-host", host

    def side_by_side() -> dict[str, Any]:
        try:
            import diffusers  # noqa: F401
        except ImportError:
            found = ours(sd, sd.model(), GRAPHS, seconds * 0.2)
            return {"ours": beside_peak(sd, found, about), "diffusers": "skipped: it is not installed"}
        model = sd.model()
        theirs = Theirs(sd)
        errors = theirs.agree(model.unet.to(device))
        before = theirs.images_per_second(seconds * 0.1)
        found = ours(sd, model, GRAPHS, seconds * 0.2)
        after = theirs.images_per_second(seconds * 0.1)
        rate = max(before["images_per_second"], after["images_per_second"])
        both = [beside_peak(sd, one, about) for one in (before, after)]
        return {
            "relative_errors": errors, "ours": beside_peak(sd, found, about), "diffusers": both,
            "diffusers_version": theirs.version, "ours_over_theirs": found["images_per_second"] / rate,
        }  # fmt: skip

    yield "sd1-512", side_by_side
    yield "sd1-512-compiled", lambda: beside_peak(sd, ours(sd, sd.model(), FASTEST, seconds * 0.2), about)


def measure(toy: bool, seconds: float, device: torch.device, out: Path) -> dict[str, Any]:
    """Do what is not in `out` yet, one part after the other; a part that fails is told and the next is done."""
    done: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    about: dict[str, Any] = {"device": name, "torch": torch.__version__, "toy": toy}
    if {name: done.get("about", {}).get(name) for name in about} != about:  # of another machine
        done = {}
    peak = next((value for word, value in NOMINAL.items() if word in name), None)
    about |= {"nominal": peak, "matmul": matmul_tflops(device, 64 if toy else 8192)}
    done["about"] = about
    for part, run in parts(toy, seconds, device, about):
        if "error" in done.get(part, {"error": ""}):
            try:
                done[part] = run()
            except Exception as error:  # out of memory, a kernel that this card has not
                done[part] = {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(done, indent=1) + "\n")
        print(part, json.dumps(done[part]), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-training.json"), metavar="FILE")
    parser.add_argument("--seconds", type=float, default=60, help="of measuring alone; warming up comes on top")
    parser.add_argument("--toy", action="store_true", help="tiny networks on the CPU, to try the script")
    options = parser.parse_args()
    if not options.toy and not torch.cuda.is_available():
        print("gpu_training: no GPU that PyTorch can use; --toy tries the script on the CPU", file=sys.stderr)
        return 2
    device = torch.device("cpu" if options.toy else "cuda")
    done = measure(options.toy, options.seconds, device, options.out)
    return 1 if any("error" in part for part in done.values() if isinstance(part, dict)) else 0


if __name__ == "__main__":
    sys.exit(main())
