"""Sources of the first stages of latent-diffusion (LD) and taming-transformers (TT), and of TT's transformers."""

from __future__ import annotations

from diptych.recipes.sources import Citation, same, silent, under

Sources = tuple[Citation, ...]
SYSTEM, ADVERSARY = "system", "system.adversarial"

LOOP = (
    *same(
        "LD autoencoder.py, TT vqgan.py: `torch.optim.Adam(lr, betas=(0.5, 0.9))`",
        under("training", optimizer="adam", betas=(0.5, 0.9), weight_decay=0.0, warmup=0, schedule="constant"),
    ),
    *same("LD main.py: no clipping", under("training", clip=0.0)),
    *same("LD autoencoder.py: `use_ema=False`", under("training", ema=0.0)),
    *same("LD contperceptual.py, TT vqperceptual.py", under(SYSTEM, l1=1.0, l2=0.0, learned_variance=False)),
    *same("LPIPS v0.1", {f"{SYSTEM}.perceptual.features": "lpips"}),
    *same("LD and TT: PatchGAN with batch norms", under(f"{ADVERSARY}.discriminator", channels=64, norm="batch")),
)
RATE = "config's base rate of 4.5e-6 x batch, of one GPU: how many there were is not said"
COMMITMENT = same(
    "TT quantize.py: `VectorQuantizer2(beta=0.25, legacy=True)`, which LD uses too; the papers weigh the other term",
    under(f"{SYSTEM}.codebook", commitment=0.25, legacy=True, weight=1.0, update="loss"),
)
KL = same("config: `kl_weight`", {f"{SYSTEM}.kl": 1e-6})
OPENIMAGES = (
    *same("config: size 384, crop_size 256", under("data", size=384, crop=256)),
    *silent("not mirrored", "data.flip"),
)
UNSIZED = (
    *same("config: crop_size 256", under("data", crop=256)),
    *silent("config without a size: that of the others", "data.size"),
    *silent("not mirrored", "data.flip"),
)


def stage(
    batch_size: int,
    channels: int,
    multipliers: tuple[int, ...],
    levels: tuple[int, ...],
    *,
    start: int,
    weight: float,
    layers: int = 3,
    codebook: int | None = None,
    attention: bool = True,
    config: str = "config",
    steps: int | None = None,
    data: Sources = OPENIMAGES,
    rate: str = RATE,
    parameters: int,
) -> Sources:
    """A first stage by its config; `steps` as the README's table of models has them."""
    how = silent("that of its relatives", "training.steps")
    if steps is not None:
        how = same("LD README, table of first stages", {"training.steps": steps})
    network = {"latent_channels": channels, "multipliers": multipliers, "attention_levels": levels, "blocks": 2}
    return (
        *how,
        *same(config, under("training", batch_size=batch_size)),
        *same(rate, under("training", learning_rate=4.5e-6 * batch_size)),
        *LOOP,
        *same(config, under(f"{SYSTEM}.network", **network, codebook=codebook, attention=attention)),
        *same(config, under(ADVERSARY, start=start, weight=weight)),
        *same(config, {f"{ADVERSARY}.discriminator.layers": layers}),
        *(KL if codebook is None else COMMITMENT),
        *same("LD model.py, built by the config", {"parameters.autoencoder": parameters}),
        *data,
    )


def unpublished(name: str, relative: Sources, shape: Sources) -> Sources:
    """One that tables 8 and 13 need and nobody published: as a relative, but for its shape."""
    fields = {source.field for source in shape}
    trained = [source for source in relative if source.field not in fields]
    alike = [source.field for source in trained if source.field.startswith(("training.", ADVERSARY))]
    rest = [source for source in trained if source.field not in alike]
    return (*shape, *silent(f"as {name}'s", *alike), *rest)


KL_START, KL_WEIGHT = 50_001, 0.5
VQ_F4 = stage(
    *(8, 3, (1, 2, 4), ()), start=0, weight=0.75, codebook=8192, steps=533_066, data=UNSIZED, parameters=55_322_782
)
VQ_F16 = stage(
    *(14, 8, (1, 1, 2, 2, 4), (4,)),
    start=250_001,
    weight=0.75,
    layers=2,
    codebook=16_384,
    steps=1_101_166,
    parameters=69_593_371,
)
TRANSFORMER = (
    *silent(
        "TT's published models come without their training configs",
        *("training.steps", "training.batch_size", "training.warmup", "training.schedule", "training.ema"),
    ),
    *same("TT configs: base rate of 4.5e-6 x batch", under("training", learning_rate=4.5e-6 * 32)),
    *same("TT cond_transformer.py: AdamW", under("training", optimizer="adamw", betas=(0.9, 0.95), weight_decay=0.01)),
    *same("TT main.py: no clipping", under("training", clip=0.0)),
    *silent("squares from the centre, not mirrored", "data.crop", "data.flip"),
)

SOURCES: dict[str, Sources] = {
    "kl-f4": stage(*(10, 3, (1, 2, 4), ()), start=KL_START, weight=KL_WEIGHT, steps=176_991, parameters=55_312_063),
    "kl-f8": (
        *stage(
            *(24, 4, (1, 2, 4, 4), ()),
            start=KL_START,
            weight=KL_WEIGHT,
            steps=246_803,
            config="autoencoder_kl_32x32x4.yaml",
            rate="autoencoder_kl_32x32x4.yaml: batches of 12, two accumulated, times 4.5e-6",
            parameters=83_653_863,
        ),
        *same("autoencoder_kl_32x32x4.yaml: `accumulate_grad_batches`", under("training", accumulation=2)),
    ),
    "kl-f16": stage(
        *(6, 16, (1, 1, 2, 2, 4), (4,)), start=KL_START, weight=KL_WEIGHT, steps=442_998, parameters=69_610_963
    ),
    "kl-f32": stage(
        *(6, 64, (1, 1, 2, 2, 4, 4), (4, 5)), start=KL_START, weight=KL_WEIGHT, steps=406_763, parameters=103_880_131
    ),
    "vq-f2": unpublished(
        "vq-f4",
        VQ_F4,
        same(
            "tables 8 and 13",
            under(f"{SYSTEM}.network", latent_channels=2, multipliers=(1, 2), codebook=2048)
            | {"parameters.autoencoder": 13_313_937},
        ),
    ),
    "vq-f4": VQ_F4,
    "vq-f4-noattn": stage(
        *(8, 3, (1, 2, 4), ()),
        start=11,
        weight=0.75,
        codebook=8192,
        attention=False,
        data=UNSIZED,
        steps=658_131,
        parameters=53_219_486,
    ),
    "vq-f8": stage(
        *(10, 4, (1, 2, 2, 4), (3,)),
        start=1,
        weight=0.6,
        layers=2,
        codebook=16_384,
        steps=971_043,
        parameters=67_717_295,
    ),
    "vq-f8-n256": stage(
        *(10, 4, (1, 2, 2, 4), (3,)),
        start=250_001,
        weight=0.75,
        codebook=256,
        steps=1_608_649,
        parameters=67_652_783,
    ),
    "vq-f16": VQ_F16,
    "vq-f32": unpublished(
        "vq-f16",
        VQ_F16,
        (
            *same("table 13; 16 channels in table 8", {f"{SYSTEM}.network.latent_channels": 32}),
            *same("tables 8 and 13", {f"{SYSTEM}.network.codebook": 16_384}),
            *silent(
                "as kl-f32's",
                *(f"{SYSTEM}.network.{f}" for f in ("multipliers", "attention_levels")),
                "parameters.autoencoder",
            ),
        ),
    ),
    "vqgan-imagenet-f16": stage(
        *(12, 256, (1, 1, 2, 2, 4), (4,)),
        start=250_001,
        weight=0.8,
        codebook=16_384,
        config="TT imagenet_vqgan.yaml; 16,384 entries as TT README",
        data=(
            *same("TT imagenet.py: `random_crop` of the shorter side", under("data", size=256, crop=256)),
            *same("TT imagenet.py: not mirrored", under("data", flip=0.0)),
        ),
        parameters=76_073_859,
    ),
    "vqgan-ffhq-f16": stage(
        *(3, 256, (1, 1, 2, 2, 4), (4,)),
        start=30_001,
        weight=0.8,
        codebook=1024,
        config="TT faceshq_vqgan.yaml, of two sets of faces",
        data=same("TT faceshq.py: square images, not mirrored", under("data", size=256, crop=None, flip=0.0)),
        parameters=72_141_699,
    ),
    "imagenet-codes": (
        *TRANSFORMER,
        *same("TT README: 1.4 B", {"parameters.transformer": 1.4e9}, 0.01),
        *same("TT README", under("system.model", top_k=600, top_p=0.92)),
        *same("TT model.yaml", under("system.model.transformer", layers=48, width=1536, vocabulary=16_384, length=256)),
        *silent("what 1.4 B leaves open", "system.model.transformer.heads"),
    ),
    "ffhq-codes": (
        *TRANSFORMER,
        *same("TT README: 801 M", {"parameters.transformer": 801e6}, 0.01),
        *same("TT README", under("system.model", top_k=250)),
        *same("TT model.yaml", under("system.model.transformer", layers=24, width=1664, vocabulary=1024, length=256)),
        *silent("what 801 M leave open", "system.model.transformer.heads"),
    ),
}
