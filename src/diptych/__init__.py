"""diptych: text-to-image models, latent diffusion (Stable Diffusion) and pixel cascades (Imagen), in one codebase.

>>> import diptych
>>> model = diptych.load()
>>> model.generate("a red apple", seeds=[0]).images[0].save("apple.png")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from diptych.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from diptych.models.autoregressive import Autoregressive
    from diptych.models.cascade import Cascade
    from diptych.models.latent_diffusion import LatentDiffusion
    from diptych.models.pixel_diffusion import PixelDiffusion
    from diptych.models.request import Result

    __version__: str

__all__ = ["Result", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """What is imported when it is asked for, so that the command answers at once."""
    if name == "Result":
        from diptych.models.request import Result

        return Result
    if name == "__version__":
        from diptych.core.version import version

        return version()
    raise AttributeError(f"module 'diptych' has no attribute {name!r}")


def load(
    source: str | Path | None = None,
    device: str = "auto",
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    tokenizer: str | Path | None = None,
    dtype: str = "float32",
    ema: bool = False,
    prediction: Literal["eps", "v"] | None = None,
    engine: Literal["auto", "pytorch", "openvino", "compile"] = "auto",
    precision: Literal["auto", "float32", "bf16", "int8"] = "auto",
    offload: Literal["none", "parts", "layers"] = "none",
    weight_precision: Literal["stored", "float8", "int8"] = "stored",
    lora: str | Path | Sequence[str | Path | tuple[str | Path, float]] | None = None,
) -> LatentDiffusion | PixelDiffusion | Cascade | Autoregressive:
    """Open a model of any kind.

    Args:
        source: a run folder or model folder, "latent" (also if none), "latent-4-steps" or "cascade" of the package, a
            published model as a folder of diffusers or a single file, or its id on the hub: "owner/name", or
            "owner/name/file.safetensors" for one file of several.
        device: where its tensors go: "cpu", "cuda", or "auto" for CUDA where there is one.
        revision: of a model on the hub: a branch, tag or commit.
        offline: never ask the hub, but take what is in its cache.
        allow_pickle: read .ckpt, .pt and .bin files too: their tensors and plain values, never code.
        tokenizer: the folder of the tokenizer for a single file, which holds none.
        dtype: of a published model's networks: "float32", "float16" or "bfloat16".
        ema: the averaged weights of a CompVis file that holds both.
        prediction: what the U-Net of a single file predicts, where the file does not say: "eps" or "v".
        engine: what runs its networks: "openvino" (on CPUs), "compile" (torch.compile), "pytorch", or "auto":
            OpenVINO on CPUs where it is installed (`pip install 'diptych[cpu]'`), else PyTorch.
        precision: in which they compute: "float32" (also "auto"), which changes no image by more than rounding; "bf16",
            where the processor or GPU is made for it; "int8", on CPUs.
        offload: what a GPU with little memory holds at a time: all of the model, one of its "parts" (text encoder,
            U-Net, decoder, a stage) or some of its "layers"; the rest waits on the host. The same images, later.
        weight_precision: "int8" or "float8" rounds the weights of all but the first and last layers and autoencoders,
            for half the memory of 16 bits; they compute in the type that they had.
        lora: LoRA files for a latent model, each alone (at scale 1) or as (file, scale); applied live, as
            `diptych.pretrained.lora_files.LoRA.attach` does.

    Raises:
        UserError: there is no such model, or a file in it is missing, truncated, of the wrong kind, not finite or not
            allowed, or the hub cannot be reached.
    """
    from diptych.core.startup import collector_paused

    with collector_paused():
        from diptych.engines.open_ahead import open_ahead

    open_ahead(str(source or "latent"), engine)
    from diptych.pretrained.load import load as open_source

    return open_source(
        source,
        device,
        revision=revision,
        offline=offline,
        allow_pickle=allow_pickle,
        tokenizer=tokenizer,
        dtype=dtype,
        ema=ema,
        prediction=prediction,
        engine=engine,
        precision=precision,
        offload=offload,
        weight_precision=weight_precision,
        lora=lora,
    )
