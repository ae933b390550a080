"""Sources of GLIDE (Nichol et al. 2021; the models of github.com/openai/glide-text2im, GL)."""

from __future__ import annotations

from diptych.recipes.sources import Citation, same, silent, under

Sources = tuple[Citation, ...]
MODEL, NETWORK = "system.model", "system.model.network"
DROPOUT = "system.diffusion.caption_dropout"
SMALL = "GL model_creation.py"

LOOP = (
    *silent(
        "as ADM's",
        *(
            f"training.{f}"
            for f in ("learning_rate", "warmup", "schedule", "optimizer", "betas", "weight_decay", "ema")
        ),
    ),
    *silent("a safeguard", "training.clip"),
    *silent("squares from the centre; captions say left and right", "data.crop", "data.flip"),
)
FINE_TUNED = (
    *silent("a tenth of the first training", "training.steps"),
    *silent("that of the first training", "training.batch_size"),
    *LOOP,
)
RELEASED = (
    *silent(
        "how the released models were trained is not said: as the paper's", "training.steps", "training.batch_size"
    ),
    *LOOP,
)
BASE = same("section 4.1: 1.2 B", {"parameters.text": 1.2e9}, 0.1, "it is that without the embeddings, which are 103 M")


def run(steps: int, batch_size: int) -> Sources:
    return (*same("section 4", under("training", steps=steps, batch_size=batch_size)), *LOOP)


def shape(where: str, channels: int, text: tuple[int, int], schedule: str) -> Sources:
    return (
        *same(where, under(NETWORK, channels=channels, dropout=0.1)),
        *same(where, under(f"{MODEL}.text.network", width=text[0], layers=text[1], max_tokens=128)),
        *same(SMALL, {f"{MODEL}.schedule.kind": schedule, f"{MODEL}.learned_variance": True}),
    )


LARGE = (
    *shape("section 4.1", 512, (2048, 24), "cosine-table"),
    *same("section 4.1: 2.3 B", {"parameters.network": 2.3e9}, 0.03),
    *BASE,
)
LARGE_UPSAMPLER = (
    *shape("section 4.1", 384, (1024, 24), "linear"),
    *same("section 4.1: 1.5 B", {"parameters": 1.5e9}, 0.1, "how it is divided is not said"),
)
MASKED = silent("section 4.3 erases random regions: LaMa's masks", f"{MODEL}.masks.thin", f"{MODEL}.masks.medium")
ALL_CAPTIONS = same("section 4.2: all captions, but where the base is tuned to be guided", {DROPOUT: 0.0})
GUIDED = same("section 4.2: a fifth", {DROPOUT: 0.2})

SOURCES: dict[str, Sources] = {
    "glide-base": (*run(2_500_000, 2048), *LARGE, *ALL_CAPTIONS),
    "glide-base-guided": (*FINE_TUNED, *LARGE, *GUIDED),
    "glide-base-inpainting": (
        *FINE_TUNED,
        *LARGE,
        *silent("as it begins", DROPOUT),
        *same("section 4.3: four more channels", under(NETWORK, concat_channels=4)),
        *MASKED,
    ),
    "glide-upsampler": (*run(1_600_000, 512), *LARGE_UPSAMPLER, *ALL_CAPTIONS),
    "glide-upsampler-inpainting": (
        *FINE_TUNED,
        *LARGE_UPSAMPLER,
        *ALL_CAPTIONS,
        *same("section 4.3: four more channels", under(NETWORK, concat_channels=7)),
        *MASKED,
    ),
    "glide-noisy-clip": (
        *same(
            "Radford et al. 2021, table 18",
            under("training", batch_size=32_768, warmup=2000, betas=(0.9, 0.98), weight_decay=0.2),
        ),
        *same("Radford et al. 2021, table 19 (ViT-L/14)", under("training", learning_rate=4e-4)),
        *same(
            "Radford et al. 2021: cosine, weights alone decay", under("training", schedule="cosine", decayed="matrices")
        ),
        *same("section 4.4: trained for 390 k", under("training", steps=390_000)),
        *silent("AdamW, for CLIP's decoupled decay", "training.optimizer"),
        *silent("a safeguard; no average", "training.clip", "training.ema"),
        *silent("ADM's encoder and a frozen text half stand in for two transformers", "parameters"),
        *silent("squares from the centre; captions say left and right", "data.crop", "data.flip"),
    ),
    "glide-base-small": (
        *RELEASED,
        *shape(SMALL, 192, (512, 16), "cosine-table"),
        *same("the released file", {"parameters": 385_030_726}),
        *GUIDED,
    ),
    "glide-upsampler-small": (
        *RELEASED,
        *shape(SMALL, 192, (512, 16), "linear"),
        *same("the released file", {"parameters": 398_361_286}),
        *ALL_CAPTIONS,
    ),
}
