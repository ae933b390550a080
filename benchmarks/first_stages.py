"""What each term of a first stage's objective is good for: the same network, data and steps, term after term.

    python -m benchmarks.first_stages --data data/emoji-64 --features runs/emoji-features
    python -m benchmarks.first_stages --size full                    wider, longer: on a GPU
    python -m benchmarks.first_stages --report                       the plot again, from what is stored

Three autoencoders are trained by the common loop: L1 and KL alone; with a perceptual distance; with a patch
discriminator besides, which begins half-way, as it only confuses what cannot draw yet, and learns for a while before
its reward counts. `--features` is the judge whose features that distance is of (`diptych train emoji-features`); what
measures is another judge, which none of them was trained on. A rerun goes on where the last one stopped. Writes what
`diptych evaluate reconstruction` writes (results.json, results.md, reconstructions.png), history.json with all that
the discriminator and the adaptive weight did, curves.png, and margins.md: the same images, term against term.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

from diptych.evaluation.benchmarks.reconstruction import evaluate_reconstruction
from diptych.networks.discriminator import DiscriminatorConfig
from diptych.pretrained.load import open_autoencoder
from diptych.recipes import get
from diptych.recipes.emoji.latent import SMALL_AUTOENCODER
from diptych.training import experiment as run
from diptych.training.experiment_config import Recipe
from diptych.training.tasks.adversarial import AdversarialConfig
from diptych.training.tasks.autoencoding import FirstStageConfig, PerceptualConfig
from diptych.training.tasks.perceptual import perceptual_distance

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the next line, where this is run as a file
from benchmarks.common import axes, logged, save

ARMS = ("L1 + KL", "L1 + KL + perceptual", "L1 + KL + perceptual + adversarial")
LEARNT = ("l1", "perceptual", "discriminator", "logits_real", "logits_fake", "reward", "adaptive_weight", "collapsed")
"""Scalars of the training log that are kept."""
RECIPE = "emoji-decoder"
"""Whose training settings are used."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained."""

    channels: int
    steps: int
    batch: int
    discriminator: int
    rate: float


SIZES = {
    "small": Size(channels=24, steps=1000, batch=16, discriminator=32, rate=1e-3),
    "full": Size(channels=64, steps=20_000, batch=64, discriminator=64, rate=1e-3),
}


def recipe(arm: str, options: argparse.Namespace) -> Recipe:
    """The recipe of one arm. First weights are the same: the seed is, and the autoencoder is made before the rest."""
    size, base = SIZES[options.size], get(RECIPE)
    steps = options.steps or size.steps
    perceptual = adversarial = None
    if "perceptual" in arm:
        perceptual = PerceptualConfig(features="judge", path=str(options.features), weight=options.perceptual_weight)
    if "adversarial" in arm:
        adversarial = AdversarialConfig(
            discriminator=DiscriminatorConfig(channels=size.discriminator, layers=2, norm="group", norm_groups=8),
            weight=options.adversarial_weight,
            start=int(steps * options.start),
            lead=int(steps * options.lead),
            warmup=steps // 10,
        )
    training = dataclasses.replace(
        base.training,
        steps=steps,
        batch_size=size.batch,
        learning_rate=size.rate,
        warmup=min(100, steps // 10),
        validate_every=max(steps // 10, 1),
        validation_images=128,
        sample_every=0,
        log_every=max(steps // 50, 1),
        checkpoint_every=max(steps // 5, 1),
        threads=options.threads,
        device=options.device,
        seed=options.seed,
    )
    system = FirstStageConfig(
        network=dataclasses.replace(SMALL_AUTOENCODER, channels=size.channels),
        kl=1e-4,
        perceptual=perceptual,
        adversarial=adversarial,
    )
    return dataclasses.replace(
        base, system=system, data=dataclasses.replace(base.data, path=str(options.data)), training=training
    )


def folder(arm: str, options: argparse.Namespace) -> Path:
    return options.run / f"{options.size}-{ARMS.index(arm)}"


def history(run_folder: Path) -> dict[str, Any]:
    """What a run logged, by step."""
    lines = logged(run_folder)
    kept = {
        kind: [
            {"step": line["step"], **{k: line[k] for k in (*LEARNT, "psnr") if k in line}}
            for line in lines
            if line["kind"] == kind
        ]
        for kind in ("train", "validation")
    }
    return {**kept, "images_per_second": max(line.get("images_per_second", 0) for line in lines)}


def plot(told: dict[str, Any], path: Path) -> None:
    """The discriminator's logits and loss, the adaptive weight, and what each arm comes to on held-out images."""
    figure, (logits, weight, quality) = axes(3, figsize=(13, 3.6))
    rows = [row for row in told[ARMS[-1]]["train"] if "discriminator" in row]
    steps = [row["step"] for row in rows]
    for name, label in (("logits_real", "logits, images"), ("logits_fake", "logits, reconstructions")):
        logits.plot(steps, [row[name] for row in rows], label=label)
    logits.plot(steps, [row["discriminator"] for row in rows], label="hinge loss", color="#555555", linestyle=":")
    logits.set(xlabel="training step", title="discriminator")
    logits.legend()
    weight.plot(steps, [row["adaptive_weight"] for row in rows], color="#D55E00")
    weight.set(xlabel="training step", title="adaptive weight", yscale="log")
    for arm in ARMS:
        validation = told[arm]["validation"]
        quality.plot([row["step"] for row in validation], [row["psnr"] for row in validation], marker=".", label=arm)
    quality.set(xlabel="training step", title="PSNR of held-out images, dB")
    quality.legend(fontsize=8)
    save(figure, path, dpi=110)


def margins(images: Path) -> str:
    """What each further term changes, image by image against the first arm: a table in Markdown, with standard
    errors of the mean difference."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in map(json.loads, images.read_text().splitlines()):
        found.setdefault(row["model"], {})[row["key"]] = row
    lines = [f"| against {ARMS[0]} | PSNR, dB | SSIM | perceptual distance |", "|-|-:|-:|-:|"]
    for arm in ARMS[1:]:
        cells = []
        for measure, digits in (("psnr", 2), ("ssim", 4), ("perceptual", 4)):
            pairs = [(row[measure], found[arm][key][measure]) for key, row in found[ARMS[0]].items()]
            change = torch.tensor(pairs, dtype=torch.float64).diff(dim=1).squeeze(1)
            error = float(change.std()) / len(change) ** 0.5
            cells.append(f"{float(change.mean()):+.{digits}f}±{error:.{digits}f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji-64"), help="images to train on")
    parser.add_argument("--features", type=Path, default=Path("runs/emoji-features"), help="a judge to train by")
    parser.add_argument("--size", choices=tuple(SIZES), default="small")
    parser.add_argument("--steps", type=int, help="training steps of each, if other than the size's")
    parser.add_argument("--perceptual-weight", type=float, default=1.0)
    parser.add_argument("--adversarial-weight", type=float, default=0.5)
    parser.add_argument(
        "--start", type=float, default=0.5, help="the share of the steps before the discriminator starts"
    )
    parser.add_argument(
        "--lead", type=float, default=0.1, help="the share of the steps after that before its reward counts"
    )
    parser.add_argument("--only", type=int, choices=range(len(ARMS)), help="train this one alone, and stop")
    parser.add_argument("--images", "--pictures", type=int, default=400, help="held-out images that are measured (400)")
    parser.add_argument("--threads", type=int, help="of the processor, for training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--run", type=Path, default=Path("runs/first-stages"), help="where the training goes on")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/first-stages"))
    parser.add_argument("--report", action="store_true", help="draw the plot from history.json, and train nothing")
    options = parser.parse_args(argv)
    stored = options.out / "history.json"
    if not options.report:
        for number, arm in enumerate(ARMS):
            if options.only in (None, number):
                print(arm, flush=True)
                run.train(recipe(arm, options), folder(arm, options))
        if options.only is not None:
            return 0
        models = [(arm, open_autoencoder(folder(arm, options)).eval()) for arm in ARMS]
        distance = perceptual_distance("judge")
        evaluate_reconstruction(models, options.data, options.out, images=options.images, perceptual=distance, sheet=12)
        settings = {name: recipe(name, options).to_dict() for name in ARMS}
        told = {arm: history(folder(arm, options)) for arm in ARMS}
        threads = options.threads or torch.get_num_threads()
        stored.write_text(json.dumps({"threads": threads, "recipes": settings, "runs": told}, indent=1) + "\n")
    plot(json.loads(stored.read_text())["runs"], options.out / "curves.png")
    table = margins(options.out / "pictures.jsonl")
    (options.out / "margins.md").write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
