"""Sources of models over pixels: ADM and its classifiers, DeepFloyd IF, Imagen, SR3 and DDPM.

GD is github.com/openai/guided-diffusion.
"""

from __future__ import annotations

from typing import Any

from diptych.recipes.sources import Citation, differs, same, silent, under

Sources = tuple[Citation, ...]
MODEL, NETWORK, DIFFUSION = "system.model", "system.model.network", "system.diffusion"
MSE = {f"{DIFFUSION}.objective.loss": "mse"}
UNCROPPED = silent("squares from the centre, not mirrored", "data.crop", "data.flip")

# ADM: Dhariwal & Nichol 2021.

ADM = (
    *same("GD train_util.py: AdamW, EMA 0.9999", under("training", optimizer="adamw", betas=(0.9, 0.999), ema=0.9999)),
    *same("GD train_util.py: defaults", under("training", weight_decay=0.0, clip=0.0, warmup=0, schedule="constant")),
    *same("GD image_datasets.py: `random_flip`, `random_crop=False`", under("data", flip=0.5, crop=None)),
    *same("Nichol & Dhariwal 2021: L_hybrid", {**MSE, f"{MODEL}.learned_variance": True}),
)


def adm(
    column: str,
    channels: int,
    multipliers: tuple[float, ...],
    steps: int,
    batch_size: int,
    parameters: float,
    *,
    rate: float = 1e-4,
    dropout: float = 0.0,
    schedule: str = "linear",
    blocks: int = 2,
    sampling: int = 250,
    where: str = "GD README: 250 steps",
) -> Sources:
    shape = {"channels": channels, "multipliers": multipliers, "blocks": blocks, "dropout": dropout}
    return (
        *same(column, under("training", steps=steps, batch_size=batch_size, learning_rate=rate)),
        *ADM,
        *same(column, under(NETWORK, **shape)),
        *same(column, {"parameters.network": parameters}, 0.005),
        *same(column, {f"{MODEL}.schedule.kind": schedule}),
        *same(where, {f"{MODEL}.steps": sampling}),
    )


def classifier(
    column: str,
    parameters: float,
    multipliers: tuple[float, ...],
    steps: int,
    *,
    size: int,
    blocks: int = 2,
    batch_size: int = 256,
    rate: float = 3e-4,
    decay: float = 0.05,
) -> Sources:
    return (
        *same(column, under("training", steps=steps, batch_size=batch_size, learning_rate=rate, weight_decay=decay)),
        *same(
            "GD classifier_train.py: AdamW as it comes; `anneal_lr`",
            under("training", optimizer="adamw", betas=(0.9, 0.999), decayed="all", cooldown=1.0, warmup=0),
        ),
        *same("GD classifier_train.py", under("training", schedule="constant", clip=0.0, ema=0.0)),
        *same(column, under("system.network.encoder", channels=128, multipliers=multipliers, blocks=blocks)),
        *same(column, {"parameters.classifier": parameters}, 0.015),
        *same(
            "GD image_datasets.py: `random_crop` of at least 0.8, `random_flip`",
            under("data", size=size, max_size=size * 5 // 4, crop=size, flip=0.5),
        ),
    )


WIDE = (1, 1, 2, 2, 4, 4)

# DeepFloyd IF: README and model cards.

IF_LOOP = (
    *silent(
        "AdamW's own; the cards name AdamW8bit alone, whose states have 8 bits to save memory",
        *("training.betas", "training.weight_decay", "training.clip"),
    ),
    *silent("Imagen's relatives have it", "training.ema"),
    *silent("not mirrored: captions say left and right", "data.flip"),
    *silent("as Imagen", f"{DIFFUSION}.caption_dropout"),
)


def deepfloyd(
    parameters: float,
    batch_size: int,
    steps: int,
    cycle: tuple[float, float, float] | None = None,
    within: float = 0.05,
) -> Sources:
    """cycle: the learning rate first, at most and last, where the model's own card has it."""
    rates = ("initial_learning_rate", "learning_rate", "final_learning_rate")
    how: Sources
    if cycle is None:
        how = silent("as I-XL", *(f"training.{field}" for field in ("optimizer", "schedule", "warmup", *rates)))
    else:
        how = (
            *same("card: AdamW8bit, one-cycle cosine", under("training", optimizer="adamw", schedule="one-cycle")),
            *same("card", under("training", warmup=10_000, **dict(zip(rates, cycle, strict=True)))),
        )
    return (
        *same("IF README", under("training", batch_size=batch_size, steps=steps)),
        *how,
        *IF_LOOP,
        *same("IF README", {"parameters.network": parameters}, within),
    )


SHIFTED = same("card: the crop from the centre, shifted by up to 0.1", under("data", crop=None, center_shift=0.1))
CENTRED = silent("the cards that were read say it of stage I", "data.crop", "data.center_shift")

# Imagen: Saharia et al. 2022.


def imagen(network: dict[str, Any], rest: Sources, optimizer: str, size: dict[str, Any], guidance: float) -> Sources:
    betas: Sources = same("section 4.1", under("training", betas=(0.9, 0.999)))
    return (
        *same("section 4.1, appendix F", under("training", steps=2_500_000, batch_size=2048, learning_rate=1e-4)),
        *same("appendix F: warmup_cosine_decay_schedule", under("training", warmup=10_000, schedule="cosine")),
        *same("section 4.1, appendix F", under("training", optimizer=optimizer)),
        *(() if optimizer == "adafactor" else betas),
        *silent("NeMo has .01, optax's own is 0", "training.weight_decay"),
        *silent("NeMo", "training.clip", "training.ema"),
        *same("appendix F", under(NETWORK, **network)),
        *rest,
        *same("section 4.1: 10 %", {f"{DIFFUSION}.caption_dropout": 0.1}),
        *same("section 2.1", MSE),
        *silent("imagen-pytorch; NeMo and JAX-Toolbox stop at 128", f"{MODEL}.text.max_tokens"),
        *same("figure A.10: p = 99.5", under(f"{MODEL}.threshold", kind="dynamic", percentile=0.995)),
        *same("zero-shot FID on COCO", {f"{MODEL}.guidance": guidance}),
        *silent("a choice", f"{MODEL}.steps"),
        *same("sections 2.4 and 2.5", size),
        *silent("captions say left and right", "data.flip"),
    )


EFFICIENT = {
    "channels": 128,
    "multipliers": (1, 2, 4, 8),
    "blocks": (2, 4, 8, 8),
    "heads": 8,
    "scale_shift": True,
    "augmented": True,
}
FIGURES = (
    *same("appendix D.2: 0.1 to 0.3 for the best samples", {f"{MODEL}.augmentation.level": 0.1}),
    *same("figures A.27 to A.29", under(NETWORK, feed_forward=0, attention_width=2, skip_conv=True, skips="level")),
    *silent("as DeepFloyd IF", f"{NETWORK}.text_pooling_heads"),
)

# SR3: Saharia et al. 2021. DDPM: Ho et al. 2020.


def sr3(multipliers: tuple[int, ...], dropout: float, parameters: float) -> Sources:
    return (
        *same("section 4", under("training", steps=1_000_000, batch_size=256)),
        *same("section 4", under("training", optimizer="adam", learning_rate=1e-4, warmup=10_000, schedule="constant")),
        *silent("as DDPM", *(f"training.{field}" for field in ("betas", "weight_decay", "clip", "ema"))),
        *same("table A.1", under(NETWORK, channels=128, multipliers=multipliers, blocks=3, dropout=dropout)),
        *same("table A.1", {"parameters.network": parameters}, 0.025),
        *same("table 5: better than L2 by half a point of FID", {f"{DIFFUSION}.objective.loss": "l1"}),
        *same("section 2.3: 1 - alpha_t", {f"{MODEL}.variance": "fixed-large"}),
        *same("section 2.2: gamma, of any value", under(f"{MODEL}.schedule", steps=2000, conditioning="gamma")),
        *silent("the well-known reimplementation's", f"{MODEL}.schedule.beta_start", f"{MODEL}.schedule.beta_end"),
        *same("section 4: bicubic", {f"{MODEL}.degradation.kind": "bicubic"}),
        *UNCROPPED,
    )


SOURCES: dict[str, Sources] = {
    "adm-64": adm(
        *("table 11", 192, (1, 2, 3, 4), 540_000, 2048, 296e6),
        rate=3e-4,
        dropout=0.1,
        schedule="cosine-table",
        blocks=3,
    ),
    "adm-128": adm("table 11", 256, (1, 1, 2, 3, 4), 4_360_000, 256, 422e6),
    "adm-256": adm("table 11", 256, WIDE, 1_980_000, 256, 554e6),
    "adm-256-unconditional": adm("GD README; as table 11's", 256, WIDE, 1_980_000, 256, 553e6),
    "adm-bedrooms": adm(
        *("table 11", 256, WIDE, 500_000, 256, 552e6),
        dropout=0.1,
        sampling=1000,
        where="GD README: best with 1000 steps (table 16)",
    ),
    "adm-512": adm("table 11", 256, (0.5, *WIDE), 1_940_000, 256, 559e6),
    "adm-64-256": adm("table 13", 192, WIDE, 500_000, 256, 312e6),
    "adm-128-512": adm("table 13", 192, WIDE, 1_050_000, 256, 309e6),
    "adm-64-classifier": classifier(
        *("table 12", 65e6, (1, 2, 3, 4), 300_000), size=64, blocks=4, batch_size=1024, rate=6e-4, decay=0.2
    ),
    "adm-128-classifier": classifier("table 12; GD README", 43e6, (1, 1, 2, 3, 4), 300_000, size=128),
    "adm-256-classifier": classifier("table 12", 54e6, WIDE, 500_000, size=256),
    "adm-512-classifier": classifier("table 12", 54e6, (0.5, *WIDE), 500_000, size=512),
    "if-1-xl": (*deepfloyd(4.3e9, 3072, 2_420_000, (2e-6, 5e-5, 5e-9)), *SHIFTED),
    "if-1-l": (
        *(s for s in deepfloyd(0.9e9, 3200, 3_000_000, (4e-6, 1e-4, 1e-8)) if s.field != "training.steps"),
        *differs(
            "training.steps",
            3_000_000,
            "IF README; card",
            "the last 500 k were a second cycle, 1e-8 -> 4e-6 -> 4e-8, which one run does not have",
        ),
        *SHIFTED,
    ),
    "if-1-m": (*deepfloyd(0.4e9, 3072, 2_500_000, within=0.08), *SHIFTED),
    "if-2-l": (*deepfloyd(1.2e9, 1536, 2_500_000), *CENTRED),
    "if-2-m": (*deepfloyd(0.45e9, 1536, 2_500_000), *CENTRED),
    "if-3-l": (*deepfloyd(0.7e9, 3072, 1_250_000), *CENTRED),
    "imagen-base": imagen(
        {"channels": 512, "multipliers": (1, 2, 3, 4), "blocks": 3, "attention_levels": (1, 2, 3), "head_width": 64},
        (
            *same("appendix F.1: scale shift, BigGAN's blocks", under(NETWORK, scale_shift=True)),
            *silent("NeMo's; 2.44 B without a projection", f"{NETWORK}.context_projection"),
            *same(
                "section 4.1: 2 B", {"parameters.network": 2e9}, 0.17, "the shape of appendix F leaves no smaller one"
            ),
            *same("appendix F.1", {f"{MODEL}.schedule.kind": "cosine"}),
        ),
        "adafactor",
        under("data", size=64, crop=None),
        1.35,
    ),
    "imagen-sr-256": imagen(
        EFFICIENT,
        (
            *FIGURES,
            *same("section 4.1: 600 M", {"parameters.network": 600e6}, 0.06, "with a skip a block 671 M"),
            *same("appendix F.2", {f"{MODEL}.schedule.kind": "cosine"}),
        ),
        "adam",
        under("data", size=256, crop=None),
        8.0,
    ),
    "imagen-sr-1024": imagen(
        {**EFFICIENT, "self_attention_levels": ()},
        (
            *FIGURES,
            *differs(
                "parameters.network",
                400_000_000,
                "section 4.1: 400 M",
                "the shape of 600 M without self-attention, which has 17 M: too few to make the difference",
            ),
            *same("appendix F.3", under(f"{MODEL}.schedule", kind="linear", beta_start=1e-4, beta_end=0.02)),
        ),
        "adam",
        under("data", size=1024, crop=256),
        8.0,
    ),
    "sr3": sr3((1, 2, 4, 8, 8), 0.2, 550e6),
    "sr3-imagenet": sr3((1, 2, 4, 4, 8, 8), 0.0, 625e6),
    "ddpm": (
        *same("appendix B", under("training", steps=800_000, batch_size=128, learning_rate=2e-4, warmup=5000)),
        *same("appendix B", under("training", optimizer="adam", ema=0.9999)),
        *same("the authors' code", under("training", clip=1.0, betas=(0.9, 0.999), weight_decay=0.0)),
        *same("the authors' code", under("training", schedule="constant")),
        *same("appendix B", under(NETWORK, channels=128, multipliers=(1, 2, 2, 2), blocks=2, dropout=0.1)),
        *same(
            "appendix B: 35.7 M",
            {"parameters.network": 35.7e6},
            0.03,
            "each attention has two projections and a norm more here",
        ),
        *same("section 4", under(f"{MODEL}.schedule", kind="linear", steps=1000, beta_start=1e-4, beta_end=0.02)),
        *same("L_simple, equation 14", MSE),
        *same("appendix B: random flips", under("data", flip=0.5, crop=None)),
    ),
}
