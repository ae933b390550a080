"""How much a first stage should compress: LDM-{1,4,8,16} for equal compute (Rombach et al. 2022, section 4.1).

    python -m benchmarks.compression --data data/emoji-64
    python -m benchmarks.compression --size full            wider, longer: on a GPU
    python -m benchmarks.compression --report               table and plot again, from what is stored

Each factor's first stage is trained for the same time, then its diffusion model for the same time; factor 1 has no
first stage and works on pixels. All U-Nets have the same shape, but for what goes in and out, and are told nothing.
Each paints the same number of images, whose Fréchet distance from held-out drawings (the judge's features) is
measured beside how many it paints in a second. A rerun goes on where the last one stopped. Writes results.json,
results.md, plot.png and sheet.png, a row of images for each factor.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import diptych
from diptych.core.devices import find_device
from diptych.core.images import grid
from diptych.core.progress import track
from diptych.data.dataset import DataConfig, open_dataset
from diptych.diffusion.losses import ObjectiveConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.metrics.frechet import frechet_distance
from diptych.models.judge import load_judge
from diptych.models.latent_diffusion import LatentConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNetConfig
from diptych.training import experiment as run
from diptych.training.experiment_config import LatentTraining, PixelTraining, Recipe
from diptych.training.tasks.autoencoding import FirstStageConfig
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.training_config import TrainingConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the next line, where this is run as a file
from benchmarks.common import axes, logged, save

FACTORS = (1, 4, 8, 16)
CHANNELS = {4: 4, 8: 8, 16: 16}
"""Of the latents of each factor: a quarter of the image's values or fewer."""
SIZE, STEPS, SAMPLER = 64, 24, "dpmpp-2m"
DRAWINGS = 400
"""Held-out drawings, at most, from which the distance is taken."""
SHOWN = 12
"""Images in a row of the sheet."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained."""

    autoencoder: int
    """Channels of a first stage's first level."""
    unet: int
    """Channels of the U-Net's first level."""
    minutes: tuple[float, float]
    """Of training: of a first stage, of a diffusion model."""
    images: int
    """That are painted and measured."""


SIZES = {"small": Size(24, 48, (2.5, 4.0), 300), "full": Size(64, 128, (1.0, 2.0), 2000)}


def autoencoder(factor: int, channels: int) -> AutoencoderConfig:
    """Patches of two pixels, then a halving for each further power of two."""
    return AutoencoderConfig(
        latent_channels=CHANNELS[factor],
        channels=channels,
        multipliers={4: (1, 2), 8: (1, 2, 3), 16: (1, 2, 3, 3)}[factor],
        blocks=1,
        patch=2,
        norm_groups=8,
    )


def unet(inputs: int, channels: int) -> UNetConfig:
    """The same for all factors; attention at its lower level, where an image of factor 1 still has 1,024 places."""
    return UNetConfig(
        in_channels=inputs,
        out_channels=inputs,
        channels=channels,
        multipliers=(1, 2),
        blocks=1,
        attention_levels=(1,),
        heads=None,
        head_width=32,
        context_width=None,
    )


def training(minutes: float, options: argparse.Namespace, **changes: Any) -> TrainingConfig:
    """Ended by the clock, so the learning rate stays constant."""
    return TrainingConfig(
        steps=1_000_000,
        minutes=minutes,
        learning_rate=1e-3,
        warmup=50,
        weight_decay=0.0,
        validate_every=0,
        sample_every=0,
        log_every=20,
        checkpoint_every=100,
        seed=options.seed,
        threads=options.threads,
        device=options.device,
        **changes,
    )


def first_stage(factor: int, options: argparse.Namespace) -> Recipe:
    size = SIZES[options.size]
    return Recipe(
        description=f"first stage of factor {factor}",
        system=FirstStageConfig(network=autoencoder(factor, size.autoencoder), l2=1.0, kl=1e-3),
        data=DataConfig(path=str(options.data), size=SIZE, in_memory=True),
        training=training(minutes(options)[0], options, batch_size=16, ema=0.99),
    )


def diffusion(factor: int, options: argparse.Namespace) -> Recipe:
    size, common = SIZES[options.size], {"schedule": ScheduleConfig(kind="flow"), "prediction": "flow", "size": SIZE}
    common |= {"text": None, "steps": STEPS, "guidance": 1.0, "sampler": SAMPLER}
    objective = DiffusionTraining(objective=ObjectiveConfig(times="logit-normal"))
    if factor == 1:
        model = PixelDiffusionConfig(network=unet(3, size.unet), low_size=None, **common)
        system: LatentTraining | PixelTraining = PixelTraining(model=model, diffusion=objective)
    else:
        latent = LatentConfig(
            autoencoder=autoencoder(factor, size.autoencoder), unet=unet(CHANNELS[factor], size.unet), **common
        )
        system = LatentTraining(
            model=latent,
            diffusion=objective,
            autoencoder=str(options.run / f"{options.size}-first-{factor}"),
            precomputed=str(options.run / f"{options.size}-latents-{factor}"),
        )
    return Recipe(
        description=f"LDM-{factor}",
        system=system,
        data=DataConfig(path=str(options.data), size=SIZE, in_memory=True),
        training=training(minutes(options)[1], options, batch_size=32, ema=0.99),
    )


def minutes(options: argparse.Namespace) -> tuple[float, float]:
    own = SIZES[options.size].minutes
    return own if options.minutes is None else tuple(m * options.minutes / sum(own) for m in own)  # type: ignore[return-value]


def train(factor: int, options: argparse.Namespace) -> Path:
    """The run of a factor's diffusion model, whole."""
    if factor > 1:
        run.train(first_stage(factor, options), options.run / f"{options.size}-first-{factor}")
        if not (options.run / f"{options.size}-latents-{factor}" / "config.json").exists():
            run.precompute(diffusion(factor, options), options.run / f"{options.size}-latents-{factor}")
    folder = options.run / f"{options.size}-ldm-{factor}"
    run.train(diffusion(factor, options), folder)
    return folder


def measure(factor: int, folder: Path, real: Any, judge: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Images of one model, how far they are from drawings, and how fast it paints."""
    model = diptych.load(str(folder)).to(find_device(options.device))
    count, batch = options.images or SIZES[options.size].images, 25
    images: list[Image.Image] = []
    seconds = 0.0
    for start in track(range(0, count, batch), f"painting with LDM-{factor}"):
        seeds = list(range(start, min(start + batch, count)))
        if not start:
            model.generate(["a drawing"], seeds=[0])  # not on the clock
        began = time.perf_counter()
        images += model.generate(["a drawing"] * len(seeds), seeds=seeds).images
        seconds += time.perf_counter() - began
    lines = logged(folder)
    network = model.network if factor == 1 else model.unet
    return {
        "factor": factor,
        "parameters": sum(p.numel() for p in network.parameters()),
        "training_steps": lines[-1]["step"],
        "pictures_trained_a_second": 32 * lines[-1]["step"] / (60 * minutes(options)[1]),
        "pictures_painted_a_second": count / seconds,
        "frechet": frechet_distance(judge.features(images).numpy(), real),
        "shown": images[:SHOWN],
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        "| model | latent | U-Net parameters | trained, pictures/s | painted, pictures/s | Fréchet distance |",
        "|-|-|-:|-:|-:|-:|",
    ]
    for row in results["models"]:
        side, depth = SIZE // row["factor"], 3 if row["factor"] == 1 else CHANNELS[row["factor"]]
        lines.append(
            f"| LDM-{row['factor']} | {side} x {side} x {depth} | {row['parameters']:,} "
            f"| {row['pictures_trained_a_second']:.1f} | {row['pictures_painted_a_second']:.2f} "
            f"| {row['frechet']:.1f} |"
        )
    drawings = results["between_drawings"]
    return "\n".join([*lines, f"| held-out drawings, half against half | | | | | {drawings:.1f} |"]) + "\n"


def plot(results: dict[str, Any], path: Path) -> None:
    """Quality against throughput (the paper's figure 7)."""
    figure, points = axes(figsize=(5.5, 4))
    for row in results["models"]:
        points.plot(row["pictures_painted_a_second"], row["frechet"], "o", color="#0072B2")
        points.annotate(
            f"LDM-{row['factor']}",
            (row["pictures_painted_a_second"], row["frechet"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    points.axhline(results["between_drawings"], color="#555555", linestyle=":", label="drawings, half against half")
    points.set(
        xscale="log",
        xlabel=f"images a second ({STEPS} steps, {results['device']})",
        ylabel="Fréchet distance, judge's features",
        title="trained for {:.1f} + {:.1f} minutes each".format(*results["minutes"]),
    )
    points.margins(0.15)
    points.legend()
    save(figure, path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"), help="images to train on")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--minutes", type=float, help="of training for each factor, if other than the size's")
    parser.add_argument("--only", type=int, choices=FACTORS, help="train this one alone, and stop")
    parser.add_argument(
        "--images", "--pictures", type=int, help="images to generate and measure, if other than the size's"
    )
    parser.add_argument("--threads", type=int, help="of the processor, for training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--run", type=Path, default=Path("runs/compression"), help="where the training goes on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/compression"))
    parser.add_argument("--report", action="store_true", help="write table and plot from results.json; train nothing")
    options = parser.parse_args(argv)
    stored = options.out / "results.json"
    if not options.report:
        folders = {factor: train(factor, options) for factor in FACTORS if options.only in (None, factor)}
        if options.only is not None:
            return 0
        judge = load_judge()
        dataset = open_dataset(DataConfig(path=str(options.data), size=SIZE, split="held-out", kinds=("single",)))
        count = min(len(dataset), DRAWINGS)
        real = judge.features([Image.fromarray(dataset[i].image) for i in range(count)]).numpy()
        rows = [measure(factor, folder, real, judge, options) for factor, folder in folders.items()]
        options.out.mkdir(parents=True, exist_ok=True)
        grid([image for row in rows for image in row.pop("shown")], columns=SHOWN).save(options.out / "sheet.png")
        device = find_device(options.device)
        results = {
            "size": options.size,
            "minutes": minutes(options),
            "seed": options.seed,
            "threads": options.threads or torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            "steps": STEPS,
            "sampler": SAMPLER,
            "judge": judge.fingerprint(),
            "drawings": count,
            "painted": options.images or SIZES[options.size].images,
            "between_drawings": frechet_distance(real[::2], real[1::2]),
            "models": rows,
        }
        stored.write_text(json.dumps(results, indent=2) + "\n")
    results = json.loads(stored.read_text())
    (options.out / "results.md").write_text(table(results))
    plot(results, options.out / "plot.png")
    print(table(results), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
