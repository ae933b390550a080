"""The commands and their options, as argparse sees them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from diptych.cli import commands
from diptych.cli.types import SEED_LIMIT, each, fraction, guide, lora, number, seeds, several, sides, whole
from diptych.core.errors import UserError, hint, unknown
from diptych.core.version import version

FLAG: dict[str, Any] = {"action": "store_const", "const": True}
"""An option without a value, none where it is not given."""

SAMPLERS = """
ddim ddpm ddpm-fixed-large dpm-2m dpm-2m-sde dpmpp-1m dpmpp-1m-sde dpmpp-2m dpmpp-2m-heun
dpmpp-2m-sde dpmpp-2m-sde-heun dpmpp-3m euler euler-ancestral heun unipc unipc-bh1
""".split()
"""Those of `diffusion.samplers`, without PyTorch."""
EXAMPLES = """\
The defaults are the model's own; each PNG says what was used, and `diptych info MODEL --json` lists them.

examples:
  diptych generate "a red apple" "a cat face" --count 4 --sampler dpmpp-2m --steps 20 --guidance 5
  diptych generate "a red apple" --model cascade --seed 1-4,9 --steps 24,8,8 --threshold dynamic:0.95,,
"""


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line; `--help` says the rest."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self.set_defaults(parser=self)  # that of the command wins

    def strange(self, words: Sequence[str]) -> NoReturn:
        """The mistake of giving words that are neither options nor expected."""
        names = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = hint(names[0], self._option_string_actions) if names else ""
        self.error(f"unrecognized arguments: {' '.join(words)}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            if isinstance(action, argparse._SubParsersAction):
                self.error(str(unknown(f"unknown command {value!r}", value, action.choices)))
            raise argparse.ArgumentError(action, str(unknown(f"unknown choice {value!r}", value, action.choices)))

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        if message:  # not swallowed, so that a closed pipe is noticed like everywhere else
            (file or sys.stderr).write(message)


def build_parser() -> Parser:
    parser = Parser(prog="diptych", description="Text to image: latent diffusion and cascaded pixel diffusion.")
    parser.add_argument("--version", action="version", version=f"diptych {version()}")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = groups.add_parser(
        "generate",
        help="generate images from prompts, or from an image",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument(
        "prompts", metavar="PROMPT", nargs="*", help="what to draw, each with each seed; none is needed with --image"
    )
    add_model(command)
    add_sampling(command)
    command.add_argument(
        "--schedule-type", metavar="T", type=each(str), help="karras, exponential, beta ...: spacing of times"
    )
    add_pictures(command, batch=8)
    command.add_argument("--negative", metavar="TEXT", help="negative prompt: what to stay away from")
    command.add_argument("--weights", **FLAG, help="read (word:1.3), (word) and [word] as weights of words")
    command.add_argument(
        "--long-prompts", metavar="HOW", help="beyond the text encoder's limit: refuse (default), cut, or chunks"
    )
    for option, told in (("--classifier", "a noisy classifier"), ("--clip", "judge, a noisy pair or a CLIP")):
        command.add_argument(
            option, metavar="FOLDER[:SCALE]", type=guide, action="append", help=f"steer by {told}; several add up"
        )
    command.add_argument(
        "--from",
        metavar="PNG",
        type=Path,
        dest="again",
        help="make this image again, from what it says of itself; other options change that",
    )
    again = command.add_argument_group("from an image")
    again.add_argument("--image", metavar="IMAGE", type=Path, help="start from this image (img2img)")
    again.add_argument(
        "--strength", metavar="S", type=fraction, help="how much of it may change: 0 to 1 (default: 0.8; 1 with a mask)"
    )
    again.add_argument("--mask", metavar="IMAGE", type=Path, help="draw anew only where this is white (inpainting)")
    again.add_argument(
        "--variations", metavar="N", type=whole(1), help="N images like it: --count N with --strength 0.6"
    )
    again.add_argument("--fit", metavar="HOW", help="crop, pad or stretch what has another shape; of --low too")
    again.add_argument("--paste", **FLAG, help="put the pixels outside the mask back exactly as they were")
    command.add_argument("--size", metavar="WxH", type=sides, help="in pixels (default: what it was trained on)")
    coding = command.add_argument_group("for latent models")
    coding.add_argument(
        "--tile", metavar="PIXELS", type=whole(1), help="encode and decode in tiles of so many, where memory is short"
    )
    coding.add_argument(
        "--preview-decoder", dest="decoder", metavar="D", help="decode by a tiny decoder: tiny, a run or a model folder"
    )
    codes = command.add_argument_group("for models that sample codes one by one (VQGAN with a transformer)")
    codes.add_argument("--temperature", metavar="T", type=number, help="below 1 likelier codes, above 1 rarer ones")
    codes.add_argument("--top-k", metavar="K", type=whole(1), help="draw among the K likeliest codes")
    codes.add_argument("--top-p", metavar="P", type=fraction, help="draw among the likeliest that have P together")
    stages = command.add_argument_group(
        "for cascades",
        "--sampler, --steps, --guidance, --threshold and --augmentation also take one value for each stage:\n"
        "--steps 24,8,8. An empty one, or -, is the stage's own: --steps 24,,",
    )
    stages.add_argument(
        "--threshold", metavar="T", type=each(str), help="none, static, or dynamic[:PERCENTILE[:CAP]] as dynamic:0.95"
    )
    stages.add_argument(
        "--augmentation", metavar="LEVEL", type=each(fraction), help="noise on what a stage enlarges, from 0 to 1"
    )
    stages.add_argument(
        "--low", metavar="IMAGE", type=Path, help="enlarge this, in the place of the first stages; for LDM-SR too"
    )
    stages.add_argument("--start", metavar="N", type=whole(0), help="stages that it stands for (default: the base)")
    stages.add_argument("--stop", metavar="N", type=whole(1), help="the first N stages only")
    stages.add_argument(
        "--keep-stages", dest="keep", **FLAG, help="save the smaller images too, as NAME-stage-SIZE.png"
    )
    stages.add_argument("--one-at-a-time", **FLAG, help="hold one stage in memory at a time")
    command.set_defaults(command=commands.generate, more="prompts", warns=True)

    command = groups.add_parser("demo", help="draw the same prompts with both default models, side by side")
    command.add_argument("prompts", metavar="PROMPT", nargs="+", help="what to draw, each with each seed")
    add_pictures(command, batch=4)
    command.set_defaults(command=commands.demo, more="prompts", warns=True)

    command = groups.add_parser("train", help="train a recipe, or go on with a run")
    add_recipe(command)
    # Not --run: torchrun takes every abbreviation of its own options, here --run-path, for itself.
    command.add_argument("--run-dir", metavar="FOLDER", type=Path, help="(default: runs/RECIPE)")
    command.add_argument("--run", dest="run_dir", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(command=commands.train)

    command = groups.add_parser("precompute", help="compute a recipe's latents and text embeddings once for all")
    add_recipe(command)
    command.add_argument("--out", metavar="FOLDER", type=Path, help="(default: cache/RECIPE)")
    command.set_defaults(command=commands.precompute)

    command = groups.add_parser("assemble", help="put trained stages together into one cascade")
    command.add_argument("stages", metavar="STAGE", nargs="+", help="run or model folders, the base first")
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="new, or an older cascade's")
    command.add_argument("--allow-pickle", **FLAG, help="of published stages, read .pt too: its tensors, never code")
    command.set_defaults(command=commands.assemble, more="stages")

    command = groups.add_parser("evaluate", help="measure a model with the judge on what it has and has not seen")
    add_model(command)
    add_study(command, "seen and held-out prompts, so many of each")
    command.add_argument("--scenes", metavar="N", type=whole(0), help="held-out scenes of each category")
    add_sampling(command)
    command.add_argument("--stop", metavar="N", type=whole(1), help="the first N stages of a cascade only")
    command.set_defaults(command=commands.evaluate)

    command = groups.add_parser("evaluate reconstruction", help="measure what first stages keep of pictures")
    add_models(
        command,
        "a first stage: its run or model folder, or what has one, as in generate; once for each (default: latent)",
    )
    add_study(command, "so many of the data's pictures (default: 400)")
    command.add_argument(
        "--split", metavar="S", choices=("held-out", "train", "all"), help="held-out (default), train or all"
    )
    command.add_argument("--size", metavar="PIXELS", type=whole(1), help="a side (default: what they have, up to 256)")
    add_perceptual(command)
    command.add_argument("--decoder", metavar="D", help="a tiny decoder too: its run or model folder")
    command.set_defaults(command=commands.evaluate_reconstruction)

    command = groups.add_parser("evaluate inpainting", help="measure how well holes in pictures are filled")
    add_models(command, "a latent model, as in generate; once for each; latent, which repaints untrained, comes along")
    add_study(command, "so many of the data's pictures (default: 100)")
    command.add_argument("--seeds", metavar="K", type=whole(2), help="masks and noise for each (default: 3)")
    command.add_argument("--steps", metavar="N", type=whole(1), help="of sampling (default: the models' own)")
    add_perceptual(command)
    command.set_defaults(command=commands.evaluate_inpainting)

    command = groups.add_parser("evaluate super-resolution", help="measure how well small pictures are enlarged")
    add_models(command, "a model that enlarges, as in generate; once for each", required=True)
    add_study(command, "so many of the data's pictures (default: 200)")
    command.add_argument("--seeds", metavar="K", type=whole(1), help="noise for each (default: 2)")
    command.add_argument("--split", metavar="S", choices=("held-out", "train", "all"), help="held-out (default)")
    command.add_argument("--degradation", metavar="D", help="how they become small: bicubic (default), bsr, bsr-light")
    command.add_argument("--sampler", metavar="S", help="(default: the models' own)")
    command.add_argument("--steps", metavar="N", type=whole(1), help="of sampling (default: the models' own)")
    add_perceptual(command)
    command.set_defaults(command=commands.evaluate_super_resolution)

    command = groups.add_parser("evaluate layout", help="measure whether things are in the boxes of their layout")
    add_model(command)
    command.add_argument("--words", metavar="M", help="to compare with: a model of captions, such as latent")
    add_study(command, "held-out scenes (default: all)")
    command.add_argument("--seeds", metavar="K", type=whole(1), help="pictures of each scene (default: 4)")
    add_sampling(command)
    command.set_defaults(command=commands.evaluate_layout)

    sweeps = groups.add_parser("sweep", help="measure a model over guidance weights, or over augmentation levels")
    kinds = sweeps.add_subparsers(title="what to sweep", metavar="SETTING", required=True)
    command = kinds.add_parser("guidance", help="guidance weights under each threshold, of the first stage that runs")
    add_model(command)
    add_study(command, "prompts of each cell")
    command.add_argument("--guidances", metavar="G,G", type=several(number), help="(default: from 1 to 30)")
    command.add_argument("--thresholds", metavar="T,T", type=several(str), help="(default: none,static,dynamic)")
    add_sweep(command, "guidance", "guidances", "thresholds")
    command = kinds.add_parser("augmentation", help="augmentation levels of the stages that enlarge")
    add_model(command)
    add_study(command, "pictures to enlarge at each level")
    command.add_argument("--levels", metavar="L,L", type=several(fraction), help="(default: from 0 to 0.5)")
    command.add_argument("--truth", **FLAG, help="enlarge real pictures made small, and compare with the real ones")
    command.add_argument("--stage", metavar="N", type=whole(0), help="of this one alone; the first is 0 (default: all)")
    add_sweep(command, "augmentation", "levels", "truth", "stage")

    command = groups.add_parser("unseen", help="compare models on words that were in no caption of their training")
    command.add_argument(
        "--model",
        metavar="M",
        action="append",
        dest="models",
        required=True,
        help="as in generate; once for each model",
    )
    add_study(command, "of each wording")
    command.set_defaults(command=commands.unseen)

    command = groups.add_parser("info", help="networks and parameters of a recipe or model, or how an image was made")
    command.add_argument("name", metavar="RECIPE|MODEL|PNG", help="a recipe, a model as in generate, or a PNG of ours")
    add_opening(command)
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(command=commands.info)

    command = groups.add_parser("convert", help="write a Stable Diffusion in another layout")
    command.add_argument("source", metavar="SRC", help="a model as in generate, of ours or published")
    command.add_argument("target", metavar="DST", type=Path, help="a folder, or a file that ends in .safetensors")
    command.add_argument(
        "--to",
        metavar="LAYOUT",
        help="diptych, diffusers or single-file (default: the last if DST ends in .safetensors, else diptych for a "
        "published SRC and diffusers for one of ours)",
    )
    command.add_argument("--overwrite", **FLAG, help="replace DST if it exists")
    add_opening(command, dtype="of what is written: stored (default), float32, float16 or bfloat16")
    command.set_defaults(command=commands.convert)

    command = groups.add_parser("recipes", help="list the recipes, or where their values come from")
    command.add_argument(
        "--sources",
        nargs="?",
        const="",
        metavar="NAME",
        help="what papers and repositories say of each value, as Markdown, of one recipe or of all that have sources",
    )
    command.set_defaults(command=commands.list_recipes)

    data = groups.add_parser("data", help="make or check training data")
    groups = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    command = groups.add_parser("emoji", help="captioned shards from six open emoji sets")
    command.add_argument("--out", metavar="FOLDER", type=Path, help="(default: data/emoji-SIZE)")
    command.add_argument("--size", metavar="PIXELS", type=whole(16, 1024), default=64, help="(default: 64)")
    command.add_argument("--scenes", metavar="N", type=whole(0), default=0, help="composed scenes beside the drawings")
    command.add_argument("--seed", metavar="N", type=whole(0, SEED_LIMIT - 1), default=0, help="(default: 0)")
    command.add_argument("--workers", metavar="N", type=whole(1, 1024), help="processes (default: one a core)")
    command.set_defaults(command=commands.data_emoji)
    command = groups.add_parser("layouts", help="layouts beside pictures, from COCO's or OpenImages' boxes")
    command.add_argument("annotations", metavar="FILE", type=Path, help="instances_*.json, or *-bbox.csv")
    command.add_argument("--pictures", metavar="FOLDER", type=Path, required=True, help="gets a metadata.jsonl")
    command.add_argument("--classes", metavar="CSV", type=Path, help="OpenImages' class-descriptions-boxable.csv")
    command.add_argument("--boxes", metavar="N", type=whole(1), help="keep the N largest of a picture (default: 30)")
    command.set_defaults(command=commands.data_layouts)
    command = groups.add_parser("captions", help="captions beside pictures, from COCO's")
    command.add_argument("annotations", metavar="FILE", type=Path, help="captions_*.json")
    command.add_argument("--pictures", metavar="FOLDER", type=Path, required=True, help="gets a metadata.jsonl")
    command.set_defaults(command=commands.data_captions)
    command = groups.add_parser("familiar", help="let models warn of prompts that are far from this data")
    command.add_argument("path", metavar="PATH", help="a folder of shards or pictures")
    command.add_argument(
        "--model", metavar="FOLDER", type=Path, action="append", dest="models", required=True, help="once for each"
    )
    command.add_argument("--least", metavar="X", type=fraction, help="similarity below which they warn")
    command.set_defaults(command=commands.data_familiar)
    command = groups.add_parser("check", help="read everything; exit 1 if training would not see all of it")
    command.add_argument("path", metavar="PATH", help="a folder of shards or pictures")
    command.add_argument("assignments", metavar="a.b=c", nargs="*", help="settings of the recipe to change")
    command.add_argument("--recipe", metavar="RECIPE", help="read it as this recipe does: with captions or without")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(command=commands.data_check, more="assignments")
    return parser


def add_models(command: Parser, told: str, required: bool = False) -> None:
    command.add_argument("--model", metavar="M", action="append", dest="models", required=required, help=told)
    add_opening(command)


def add_model(command: Parser) -> None:
    command.add_argument(
        "--model",
        metavar="M",
        help="latent, cascade, a run or model folder, a published folder or file, or owner/name on the hub "
        "(default: latent)",
    )
    add_opening(command)
    command.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        type=lora,
        action="append",
        help="change a latent model by this LoRA, at scale 1 unless given; once for each file",
    )


def add_opening(command: Parser, dtype: str = "of the networks: float32 (default), float16 or bfloat16") -> None:
    """How a published model is found and read."""
    published = command.add_argument_group("for published models")
    published.add_argument("--revision", metavar="R", help="a branch, tag or commit on the hub")
    published.add_argument("--offline", **FLAG, help="take models of the hub from its cache alone")
    published.add_argument("--allow-pickle", **FLAG, help="read .ckpt, .pt and .bin too: their tensors, never code")
    published.add_argument("--tokenizer", metavar="FOLDER", type=Path, help="for a single file, which holds none")
    published.add_argument("--dtype", metavar="T", help=dtype)
    published.add_argument("--ema", **FLAG, help="the averaged weights of a file that holds both")
    published.add_argument("--prediction", metavar="P", help="eps or v, where a single file does not say")


def add_sampling(command: Parser) -> None:
    command.add_argument(
        "--sampler", metavar="S", type=each(str), help=f"{', '.join(SAMPLERS)} (default: the model's own)"
    )
    command.add_argument("--steps", metavar="N", type=each(whole(1)), help="of sampling (default: the model's own)")
    command.add_argument(
        "--guidance", metavar="G", type=each(number), help="CFG scale; 1 is off (default: the model's own)"
    )


def add_pictures(command: Parser, batch: int) -> None:
    command.add_argument(
        "--seed", metavar="N", type=seeds, action="extend", default=[], help="0,4-7 are five; -1 draws one (default: 0)"
    )
    command.add_argument("--count", metavar="N", type=whole(1), help="seeds to use from the first one on")
    command.add_argument(
        "--batch", metavar="N", type=whole(1), default=batch, help=f"images at a time (default: {batch})"
    )
    command.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, mps, or auto (default): cuda if there is one"
    )
    command.add_argument("--out", metavar="FOLDER", type=Path, default=Path("out"), help="(default: out)")


def add_study(command: Parser, pictures: str) -> None:
    command.add_argument("--pictures", metavar="N", type=whole(1), help=pictures)
    command.add_argument("--data", metavar="FOLDER", type=Path, required=True, help="shards from `diptych data emoji`")
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="for the numbers and contact sheets")
    command.add_argument("--seed", metavar="N", type=whole(0, SEED_LIMIT - 1), help="fixes prompts and images")
    command.add_argument("--judge", metavar="FOLDER", help="another judge than the one in the package: a run or model")
    command.add_argument("--device", metavar="D", default="auto", help="as in generate")
    command.add_argument("--batch", metavar="N", type=whole(1), help="images at a time")


def add_perceptual(command: Parser) -> None:
    command.add_argument("--perceptual", metavar="P", help="judge (default), lpips, or none")
    command.add_argument("--perceptual-path", metavar="PATH", help="weights of VGG16 for lpips, or another judge")


def add_sweep(command: Parser, kind: str, *swept: str) -> None:
    command.add_argument("--steps", metavar="N", type=each(whole(1)), help="as in generate")
    command.add_argument("--stop", metavar="N", type=whole(1), help="the first N stages of a cascade only")
    command.set_defaults(command=commands.sweep, sweep=kind, swept=swept)


def add_recipe(command: Parser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a name from `diptych recipes`")
    command.add_argument("assignments", metavar="a.b=c", nargs="*", help="settings to change: training.steps=1000")
    command.set_defaults(more="assignments")
