"""Sources of Stable Diffusion 1.x and of latent-diffusion's models (Rombach et al. 2022, version 2).

LD is github.com/CompVis/latent-diffusion: what its code does where a config says nothing is what the models have.
"""

from __future__ import annotations

from typing import Any

from diptych.recipes.papers.ldm import Analysed
from diptych.recipes.sources import Citation, differs, same, silent, under

Sources = tuple[Citation, ...]
UNET, MODEL, DIFFUSION = "system.model.unet", "system.model", "system.diffusion"

ADAMW = same(
    "LD ddpm.py: `torch.optim.AdamW(params, lr=lr)`",
    under("training", optimizer="adamw", betas=(0.9, 0.999), weight_decay=0.01, decayed="all"),
)
LOOP = (
    *ADAMW,
    *same("LD main.py: no clipping", under("training", clip=0.0)),
    *same("LD ema.py: LitEma", under("training", ema=0.9999)),
)
CONSTANT = same("config: no scheduler", under("training", warmup=0, schedule="constant"))
MSE = same('LD ddpm.py: `loss_type="l2"`', {f"{DIFFUSION}.objective.loss": "mse"})
L1 = same("config: `loss_type: l1`", {f"{DIFFUSION}.objective.loss": "l1"})
UNSCALED = same("appendix D.1; configs: `scale_factor` 1", {f"{MODEL}.latent_scale": 1.0})
SCALED = same("appendix G; config: `scale_by_std`", {f"{MODEL}.latent_scale": None})
UNCHANGED = same("LD taming.data.faceshq: neither crop nor flip", under("data", crop=None, flip=0.0))
MIRRORED = same("LD lsun.py: `flip_p=0.5`", under("data", crop=None, flip=0.5))
CROPPED = same("LD imagenet.py: `random_crop` of the shorter side", under("data", crop=256, flip=0.0))
UNKNOWN_DATA = silent("its data set is not described", "data.crop", "data.flip")


def betas(start: float, end: float, where: str = "config") -> Sources:
    return same(where, under(f"{MODEL}.schedule", kind="scaled-linear", steps=1000, beta_start=start, beta_end=end))


def run(where: str, steps: int, batch_size: int, learning_rate: float) -> Sources:
    return same(where, under("training", steps=steps, batch_size=batch_size, learning_rate=learning_rate))


def shape(where: str, channels: int, multipliers: tuple[int, ...], levels: tuple[int, ...], **more: Any) -> Sources:
    values = {"channels": channels, "multipliers": multipliers, "blocks": 2, "attention_levels": levels, **more}
    return same(where, under(UNET, **values))


def sampled(where: str, steps: int, sampler: str, guidance: float = 1.0) -> Sources:
    return same(where, under(MODEL, steps=steps, sampler=sampler, guidance=guidance))


def counts(where: str, within: float = 0.01, **networks: float) -> Sources:
    return same(where, under("parameters", **networks), within)


def unconditional(steps: int, batch_size: int, rate: float, data: Sources, sampler: str) -> Sources:
    """Of table 12, over vq-f4."""
    return (
        *run("table 12", steps, batch_size, rate),
        *CONSTANT,
        *LOOP,
        *MSE,
        *UNSCALED,
        *betas(0.0015, 0.0195),
        *shape("table 12", 224, (1, 2, 3, 4), (1, 2, 3), head_width=32),
        *counts("table 12", unet=274e6),
        *data,
        *sampled(f"LD README: 200 DDIM steps, eta={'1' if sampler == 'ddpm' else '0'}", 200, sampler),
    )


def analysed(of: Analysed, factor: int) -> Sources:
    """Of tables 13 and 14."""
    table = f"table {13 if of == 'imagenet' else 14}"
    column = {
        # factor: channels, multipliers, batch, rate, parameters
        "imagenet": {
            1: (192, (1, 1, 2, 2, 4, 4), 7, 4.9e-5, 396e6),
            2: (192, (1, 2, 2, 4, 4), 9, 6.3e-5, 391e6),
            4: (192, (1, 2, 3, 5), 40, 8e-5, 391e6),
            8: (256, (1, 2, 4), 64, 6.4e-5, 395e6),
            16: (256, (1, 2, 4), 112, 4.5e-5, 395e6),
            32: (256, (1, 2, 4), 112, 4.5e-5, 395e6),
        },
        "celeba": {
            1: (192, (1, 1, 2, 2, 4, 4), 9, 9e-5, 270e6),
            2: (192, (1, 2, 2, 4, 4), 11, 1.1e-4, 265e6),
            4: (224, (1, 2, 3, 4), 48, 9.6e-5, 274e6),
            8: (256, (1, 2, 4), 96, 9.6e-5, 258e6),
            16: (256, (1, 2, 4), 128, 1.3e-4, 260e6),
            32: (256, (1, 2, 4), 128, 1.3e-4, 258e6),
        },
    }[of][factor]
    channels, multipliers, batch_size, rate, parameters = column
    levels = len(multipliers)
    heads: dict[str, Any] = {"heads": 1, "context_width": 512} if of == "imagenet" else {"head_width": 32}
    fields = {"channels": channels, "multipliers": multipliers, "blocks": 2, **heads}
    fields["attention_levels"] = tuple(range(levels - 3, levels))
    network = "network" if factor == 1 else "unet"
    sampling = "figure 6: 100 DDIM steps, kappa 0" if of == "imagenet" else "figure 7: 10 to 200 DDIM steps"
    rounded = "this count is that of 400 M in tables 3 and 10" if (of, factor) == ("imagenet", 4) else ""
    return (
        *run(table, 2_000_000 if of == "imagenet" else 500_000, batch_size, rate),
        *CONSTANT,
        *LOOP,
        *MSE,
        *(() if factor == 1 else UNSCALED),
        *betas(0.0015, 0.0195, "the configs of its relatives"),
        *same(table, under(f"{MODEL}.{network}", **fields)),
        *same(table, {f"parameters.{network}": parameters}, 0.03 if rounded else 0.01, rounded),
        *(CROPPED if of == "imagenet" else UNCHANGED),
        *same(sampling, under(MODEL, steps=100, sampler="ddim")),
    )


INPAINTING = (
    *differs(
        "training.learning_rate",
        1e-6,
        "table 15",
        "that is the base rate of the config; all other columns have it times the batch, which is 1.28e-4",
    ),
    *LOOP,
    *L1,
    *UNSCALED,
    *betas(0.0015, 0.0205, "inpainting_big/config.yaml"),
    *same("appendix E.2.2: random crops of 256 px", under("data", crop=256)),
    *silent("of Places at 512 px, as the model was tested on", "data.size"),
    *silent("appendix E.2.2 names LaMa's code: its thick masks alone", f"{MODEL}.concat.masks.medium"),
    *silent("not mirrored", "data.flip"),
)
SUPER_RESOLUTION = (
    *CONSTANT,
    *LOOP,
    *same("bsr_sr/config.yaml: `loss_type: l2`", {f"{DIFFUSION}.objective.loss": "mse"}),
    *UNSCALED,
    *betas(0.0015, 0.0155, "bsr_sr/config.yaml"),
    *shape("table 15; bsr_sr/config.yaml", 160, (1, 2, 2, 4), (3,), head_width=32),
    *same("table 15, with the first stage", {"parameters": 169e6}, 0.01),
    *same("LD imagenet.py: a random square of 0.5 to 1 of the shorter side", under("data", crop=256, max_size=512)),
    *sampled("table 5: 100 steps", 100, "ddim"),
)
LAYOUT = (
    *CONSTANT,
    *LOOP,
    *L1,
    *UNSCALED,
    *differs("data.crop", 256, "TT configs: random crops, as the 92 tokens of table 17", "boxes are of the centre's"),
    *differs("data.flip", 0.5, "TT configs: `random_flip`", "boxes are not mirrored"),
    *same("table 17", under(f"{MODEL}.text.network", layers=16, width=512)),
    *same("no unconditional guidance", {f"{DIFFUSION}.caption_dropout": 0.0}),
    *sampled("LD README: 200 DDIM steps, eta=0", 200, "ddim"),
)

SOURCES: dict[str, Sources] = {
    "sd1": (
        *differs(
            "training.steps",
            237_000 + 194_000 + 515_000 + 195_000,
            "model cards of v1-1 to v1-3",
            "one run at 512 px: theirs was at 256 px first; `system.init_from` goes on from one",
        ),
        *same("model card", under("training", batch_size=2048, learning_rate=1e-4, warmup=10_000)),
        *same("v1-inference.yaml: a scheduler that stays at 1", under("training", schedule="constant")),
        *LOOP,
        *MSE,
        *differs(
            f"{MODEL}.latent_scale", 0.18215, "v1-inference.yaml", "1 / the deviation of the first stage that is used"
        ),
        *betas(0.00085, 0.012, "v1-inference.yaml"),
        *same(
            "v1-inference.yaml",
            under(UNET, channels=320, multipliers=(1, 2, 4, 4), attention_levels=(0, 1, 2), heads=8, context_width=768),
        ),
        *counts("model card; counted there", 0.001, unet=860e6, text=123.06e6),
        *same("model cards of v1-3 and v1-4", {f"{DIFFUSION}.caption_dropout": 0.1}),
        *silent("squares from the centre, not mirrored", "data.crop", "data.flip"),
        *same("model card", under(MODEL, steps=50)),
        *same("SD txt2img.py: `--scale 7.5`", under(MODEL, guidance=7.5)),
        *differs(f"{MODEL}.sampler", "plms", "model card", "DDIM, the default of its script"),
    ),
    "ldm-text": (
        *run("table 15", 390_000, 680, 1e-4),
        *silent("as Stable Diffusion's", "training.warmup"),
        *same("txt2img-1p4B-eval.yaml", under("training", schedule="constant")),
        *LOOP,
        *MSE,
        *differs(
            f"{MODEL}.latent_scale", 0.18215, "txt2img-1p4B-eval.yaml", "1 / the deviation of the first stage used"
        ),
        *betas(0.00085, 0.012, "txt2img-1p4B-eval.yaml"),
        *shape("table 15", 320, (1, 2, 4, 4), (0, 1, 2), heads=8, context_width=1280),
        *same("table 17", under(f"{MODEL}.text.network", layers=32, width=1280, max_tokens=77)),
        *same(
            "table 15 counts 39 M of logits that are not used",
            under("parameters", unet=872_300_484, text=542_895_360),
        ),
        *silent("as Ho & Salimans and Stable Diffusion", f"{DIFFUSION}.caption_dropout"),
        *UNKNOWN_DATA,
        *sampled("LD README: 50 DDIM steps, eta=0, scale 5", 50, "ddim", 5.0),
    ),
    "ldm-text-vq-f4": (
        *silent("that of the larger model; trained on LAION first, says LD README", "training.steps"),
        *same(
            "text2img256/config.yaml: base rate of 2e-6 x batch", under("training", batch_size=28, learning_rate=5.6e-5)
        ),
        *CONSTANT,
        *LOOP,
        *MSE,
        *UNSCALED,
        *betas(0.0015, 0.0195),
        *shape("text2img256/config.yaml", 192, (1, 2, 3, 5), (1, 2, 3), head_width=32, context_width=640),
        *same("text2img256/config.yaml", under(f"{MODEL}.text.network", layers=32, width=640)),
        *silent("counted here: the source gives none", "parameters.unet", "parameters.text"),
        *silent("as Ho & Salimans and Stable Diffusion", f"{DIFFUSION}.caption_dropout"),
        *UNKNOWN_DATA,
        *same("LD README: 100 DDIM steps, eta=0", under(MODEL, steps=100, sampler="ddim")),
        *silent("that of the larger model", f"{MODEL}.guidance"),
    ),
    "ldm-cin256": (
        *run("table 15", 178_000, 1200, 1e-4),
        *CONSTANT,
        *LOOP,
        *MSE,
        *UNSCALED,
        *betas(0.0015, 0.0195),
        *shape("table 15; cin256-v2.yaml", 192, (1, 2, 3, 5), (1, 2, 3), heads=1, context_width=512, classes=1001),
        *counts("tables 3 and 10; 395 M in table 15", unet=400e6),
        *silent("as Ho & Salimans and Stable Diffusion", f"{DIFFUSION}.caption_dropout"),
        *CROPPED,
        *sampled("table 10: 250 steps, scale 1.5", 250, "ddim", 1.5),
    ),
    "ldm-cin256-vq-f8": (
        *run("table 13", 2_000_000, 64, 6.4e-5),
        *CONSTANT,
        *LOOP,
        *MSE,
        *UNSCALED,
        *betas(0.0015, 0.0195),
        *shape("cin-ldm-vq-f8.yaml", 256, (1, 2, 4), (0, 1, 2), head_width=32, context_width=512, classes=1000),
        *counts("table 13", unet=395e6),
        *same("config: no null class", {f"{DIFFUSION}.caption_dropout": 0.0}),
        *CROPPED,
        *sampled("LD README: 200 DDIM steps, eta=1", 200, "ddpm"),
    ),
    "ldm-celebahq": unconditional(410_000, 48, 9.6e-5, UNCHANGED, "ddim"),
    "ldm-ffhq": unconditional(635_000, 42, 8.4e-5, UNCHANGED, "ddpm"),
    "ldm-bedrooms": unconditional(1_900_000, 48, 9.6e-5, MIRRORED, "ddpm"),
    "ldm-churches": (
        *run("table 12", 500_000, 96, 5e-5),
        *same("config: `warm_up_steps: [10000]`", under("training", warmup=10_000, schedule="constant")),
        *LOOP,
        *L1,
        *SCALED,
        *betas(0.0015, 0.0155),
        *shape("table 12; config", 192, (1, 2, 2, 4, 4), (0, 1, 2, 3), heads=8, scale_shift=True),
        *counts("table 12", unet=294e6),
        *MIRRORED,
        *sampled("LD README: 400 DDIM steps, eta=0", 400, "ddim"),
    ),
    **{
        f"ldm-{of}-{factor}": analysed(of, factor)  # type: ignore[arg-type]
        for of in ("imagenet", "celeba")
        for factor in (1, 2, 4, 8, 16, 32)
    },
    "ldm-inpainting": (
        *silent("table 15 has 360 k steps for the model of 215 M; of the big one nothing is said", "training.steps"),
        *silent("table 15 has 128 for the model of 215 M", "training.batch_size"),
        *same("inpainting_big/config.yaml: `warm_up_steps`", under("training", warmup=1000)),
        *differs(
            "training.schedule",
            "cosine",
            "inpainting_big/config.yaml: to a thousandth, of a tenth, in 50 k steps",
            "so small a rate adapts a model that is trained and trains none",
        ),
        *INPAINTING,
        *shape("inpainting_big/config.yaml", 256, (1, 2, 3, 4), (1, 2, 3), heads=8, residual_resampling=True),
        *counts("section 4.5", unet=387e6),
    ),
    "ldm-inpainting-small": (
        *same("table 15", under("training", steps=360_000, batch_size=128)),
        *silent("no config was published", "training.warmup", "training.schedule"),
        *INPAINTING,
        *shape("table 15", 128, (1, 4, 8), ()),
        *silent("that of semantic synthesis, of the same shape; 1 in table 15", f"{UNET}.heads"),
        *counts("table 15", 0.002, unet=215e6),
    ),
    "ldm-sr": (
        *run("table 15", 860_000, 64, 6.4e-5),
        *SUPER_RESOLUTION,
        *same("appendix E.3.4", {f"{MODEL}.concat.degradation.kind": "bicubic"}),
        *silent("not mirrored", "data.flip"),
    ),
    "ldm-sr-bsr": (
        *silent("as LDM-SR", "training.steps"),
        *same("bsr_sr/config.yaml", under("training", batch_size=64, learning_rate=6.4e-5)),
        *SUPER_RESOLUTION,
        *same("bsr_sr/config.yaml: bsrgan_light", {f"{MODEL}.concat.degradation.kind": "bsr-light"}),
        *silent("not mirrored", "data.flip"),
    ),
    "ldm-layout-openimages": (
        *run("table 15", 4_400_000, 24, 4.8e-5),
        *LAYOUT,
        *betas(0.0015, 0.0205),
        *shape("table 15; config", 128, (1, 2, 3, 4), (1, 2, 3), depth=3, head_width=32, context_width=512),
        *same(
            "table 15 has 306 M: these two, and logits of 4 M that are not used",
            under("parameters", unet=246_277_379, text=54_656_000),
        ),
    ),
    "ldm-layout-coco": (
        *run("table 15", 170_000, 48, 4.8e-5),
        *LAYOUT,
        *betas(0.0015, 0.0205, "the config of that of OpenImages"),
        *shape("table 15", 192, (1, 2, 4), (0, 1, 2), depth=2, context_width=512, dropout=0.1),
        *differs(
            "parameters.unet",
            345_000_000 - 54_656_000,
            "table 15: 345 M in all",
            "its shape has more; no config was published, and only half the transformer's layers would make up for it",
        ),
    ),
}
