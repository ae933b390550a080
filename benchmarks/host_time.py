"""Host time of a training step whose network does nothing: 512 latents of 8 x 16 x 16, texts of 20 tokens, 384 wide.

    OMP_NUM_THREADS=1 python -m benchmarks.host_time [--out benchmarks/results/host-time] [--profile]

One thread; of the CPU time of the process, which other work on the machine hardly changes, the least and the median of
many steps, and beside them the least time by the clock. `cpu` computes everything. `host` is an estimate of what holds
up a GPU: the same step of 512 examples on latents of 8 x 1 x 1 and texts 2 wide, so that Python, look-ups and calls of
kernels are left, and the kernels themselves cost next to nothing; texts are gathered as they are on a GPU. (Tensors of
the meta device do not serve: PyTorch computes their shapes in Python.) The parts are those of a step; `all` is the
whole of `Run.take_step`.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import processor
from benchmarks.stand_ins import Nothing, RandomText
from diptych.core.counter_random import draws_of
from diptych.core.random import DROP, NOISE, POSTERIOR, TIME
from diptych.encoders.cache import CachePart, EmbeddedTexts
from diptych.encoders.configs import MiniLMConfig
from diptych.encoders.text_table import TextTable
from diptych.models.latent_config import LatentConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNetConfig
from diptych.training.distributed import Team
from diptych.training.prefetch import to_device
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import Run
from diptych.training.training_config import TrainingConfig

BATCH, CHANNELS, TOKENS = 512, 8, 20
SIDE, WIDTH = {"cpu": 16, "host": 1}, {"cpu": 384, "host": 2}


class Unread:
    """In place of the copies to the host: as if none had arrived yet."""

    lag = 2

    def send(self, values: Tensor, note: Any) -> None:
        """A copy is queued on a GPU, and not waited for."""

    def read(self, wait: bool = False) -> Iterator[Any]:
        return iter(())


def run_of(kind: str, random: str) -> tuple[Run, dict[str, Any]]:
    """A run that is about to take steps, and a batch as the loop gets it."""
    device, side, width = torch.device("cpu"), SIDE[kind], WIDTH[kind]
    shape = AutoencoderConfig(latent_channels=CHANNELS, channels=8, multipliers=(1, 1), blocks=1, norm_groups=4)
    unet = UNetConfig(
        channels=8, multipliers=(1,), blocks=1, attention_levels=(), heads=1, norm_groups=4, context_width=384,
        pooled_width=384, in_channels=CHANNELS, out_channels=CHANNELS,
    )  # fmt: skip
    config = LatentConfig(autoencoder=shape, unet=unet, text=MiniLMConfig(), size=side * shape.factor)
    captions = [f"caption {i}" for i in range(BATCH)]
    reader = RandomText(width, TOKENS)
    texts = EmbeddedTexts(reader, CachePart.of(["", *captions], reader.encode(["", *captions])))
    if kind == "host":
        texts.table = TextTable.of(texts.index, device)
    network: Any = Nothing()
    task = DiffusionTask(LatentDiffusion(config, Autoencoder(shape), texts, network), DiffusionTraining())
    settings = TrainingConfig(
        steps=10**6, batch_size=BATCH, random=random, threads=1, device="cpu", precision="fp32", clip=1.0, workers=0
    )
    run = Run(task, lambda positions: {}, settings, Path(tempfile.mkdtemp()), None, Team(0, 1, device), False)
    run.state = run.new_state()
    run.module.train()
    if kind == "host":
        run.results = Unread()  # type: ignore[assignment]
    batch = {
        "latent": torch.randn(BATCH, 2 * CHANNELS, side, side, dtype=torch.float16),
        "caption": captions,
        "seed": torch.randint(0, 2**62, (BATCH,)),
        "key": captions,
    }
    return run, {**to_device(batch, device), "random": random}


def parts(run: Run, batch: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """The parts of a step."""
    system, state = run.trainable.system, run.state  # type: ignore[attr-defined]
    draws, captions = draws_of(batch), batch["caption"]
    like = system.posterior(batch).mean

    def host_draws() -> object:
        return draws_of(batch).host.uniform(DROP) < 0.1, draws_of(batch).uniform(TIME)

    def backward() -> None:
        run.trainable.loss(batch)[0].sum().backward()

    return {
        "random numbers: times, dropout": host_draws,
        "random numbers: noise of latents": lambda: (draws.normal(like, NOISE), draws.normal(like, POSTERIOR)),
        "texts": lambda: system.embed(captions),
        "loss": lambda: run.trainable.loss(batch),
        "loss and backward pass": backward,
        "clipping": lambda: state.parallel.clip_gradients(1.0),
        "optimizer": state.optimizer.step,
        "average": lambda: state.ema.update(10),
        "all": lambda: run.take_step(itertools.repeat(batch), 1.0),
    }


def timed(work: Callable[[], object], repetitions: int) -> dict[str, float]:
    """Milliseconds: the least and the median of the process's CPU time, and the least by the clock."""
    computed, passed = list[float](), list[float]()
    for _ in range(repetitions + 3):
        start, began = time.process_time(), time.perf_counter()
        work()
        computed.append((time.process_time() - start) * 1000)
        passed.append((time.perf_counter() - began) * 1000)
    found = {"least": min(computed[3:]), "median": statistics.median(computed[3:]), "clock": min(passed[3:])}
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--out", type=Path, help="folder for results.json")
    parser.add_argument("--profile", action="store_true", help="what the host does in a step, by function")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{processor()}, one thread, PyTorch {torch.__version__}: ms a step of {BATCH}: least, median, by the clock")
    found: dict[str, Any] = {}
    for kind, random in itertools.product(("host", "cpu"), ("counter", "generator")):
        run, batch = run_of(kind, random)
        named = parts(run, batch)
        named["all"]()
        count = arguments.repetitions if kind == "host" else max(3, arguments.repetitions // 6)
        for part, work in named.items():
            found[f"{kind}, {random}: {part}"] = took = timed(work, count)
            numbers = " ".join(f"{number:8.2f}" for number in took.values())
            print(f"{numbers}  {kind}, {random}: {part}", flush=True)
        if arguments.profile and kind == "host" and random == "counter":
            with cProfile.Profile() as profile:
                for _ in range(50):
                    named["all"]()
            pstats.Stats(profile).sort_stats("tottime").print_stats(35)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        told = {"cpu": processor(), "torch": torch.__version__, "batch": BATCH, "milliseconds": found}
        (arguments.out / "results.json").write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
