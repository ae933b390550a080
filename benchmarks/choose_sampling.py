"""Choose a model's guidance weight and number of steps by the judge, on drawings apart from those of its report.

    python benchmarks/choose_sampling.py --model latent --data data/emoji-128 --out benchmarks/results/choose-sampling

The report is `diptych evaluate` with its own default seed and number of pairs (`--reported`): none of its seen pairs is
asked for here, and held-out pairs are not asked for at all. Every setting samples the same prompts from the same noise.
A setting is written as soon as it is measured; the same command again goes on behind it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

import diptych
from diptych.data.caption_text import concept_of, is_scene
from diptych.data.dataset import DataConfig, open_dataset
from diptych.evaluation.prompt_sets import PromptGroup, choose_prompts
from diptych.evaluation.runner import generate_group
from diptych.evaluation.scores import real_images
from diptych.metrics.frechet import frechet_distance
from diptych.models.judge import load_judge
from diptych.models.retrieval import Mean, Share, concept_vectors, ranks


def other_pairs(metas: list[dict], images: int, reported: int, seed: int) -> PromptGroup:
    """So many seen pairs, drawn by `seed`, none of which is among the `reported` ones of `diptych evaluate`."""
    (taken,), _ = choose_prompts(metas, reported, 0, seed=0, splits=("seen",))
    used = {(concept_of(m), m["style"]) for m in taken.metas}
    free = [m for m in metas if not is_scene(m) and (concept_of(m), m["style"]) not in used]
    (group,), _ = choose_prompts(free, images, 0, seed=seed, splits=("seen",))
    places = {id(meta): i for i, meta in enumerate(metas)}
    group.indices = [places[id(meta)] for meta in group.metas]
    return group


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="latent")
    parser.add_argument("--data", type=Path, default=Path("data/emoji-128"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/choose-sampling"))
    parser.add_argument("--guidances", type=float, nargs="+", default=[3, 5, 7, 10])
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 24])
    parser.add_argument("--images", "--pictures", type=int, default=64, help="pairs asked for at each setting")
    parser.add_argument("--reported", type=int, default=400, help="pairs of the report, which are left out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()

    model, judge = diptych.load(arguments.model), load_judge(None)
    dataset = open_dataset(DataConfig(path=str(arguments.data), size=judge.config.size, split="all"))
    metas = [dataset.meta(i) for i in range(len(dataset))]
    concepts = sorted({concept_of(m) for m in metas if not is_scene(m)})
    vectors = concept_vectors(judge, concepts)
    group = other_pairs(metas, arguments.images, arguments.reported, arguments.seed)
    truth = torch.tensor([concepts.index(concept_of(m)) for m in group.metas])

    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    most = max(arguments.steps)
    wanted = [(g, most) for g in arguments.guidances] + [(None, s) for s in sorted(arguments.steps, reverse=True)[1:]]
    for guidance, steps in wanted:
        if guidance is None:  # steps are compared at the guidance weight that did best with the most of them
            guidance = max((r for r in done if r["steps"] == most), key=lambda r: r["alignment"][0])["guidance"]
        if any((r["guidance"], r["steps"]) == (guidance, steps) for r in done):
            continue
        generate_group(model, group, arguments.batch, guidance=guidance, steps=steps)
        if not group.real:
            group.real = real_images(dataset, group.indices, group.generated[0].width)
        made = judge.encode_images(group.generated)
        rank = ranks(made, vectors, truth)
        row = {
            "guidance": guidance,
            "steps": steps,
            "alignment": Mean.of((made * vectors[truth]).sum(1))[:2],
            "top1": Share.of(rank == 0)[:2],
            "top5": Share.of(rank < 5)[:2],
            "frechet": frechet_distance(judge.features(group.generated).numpy(), judge.features(group.real).numpy()),
            "pictures": len(truth),
        }
        done.append(row)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    lines = ["| guidance | steps | alignment | top-1, % | top-5, % | Fréchet |", "|-:|-:|-:|-:|-:|-:|"]
    for r in done:
        top1, top5 = (f"{100 * r[k][0]:.1f}±{100 * r[k][1]:.1f}" for k in ("top1", "top5"))
        alignment = f"{r['alignment'][0]:.3f}±{r['alignment'][1]:.3f}"
        lines.append(f"| {r['guidance']:g} | {r['steps']} | {alignment} | {top1} | {top5} | {r['frechet']:.2f} |")
    (arguments.out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
