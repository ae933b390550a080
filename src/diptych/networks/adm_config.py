"""The shape of the U-Net of guided-diffusion (ADM) and of DeepFloyd IF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from diptych.core.config import Within
from diptych.networks.conditioned_unet import ConditionedUNetConfig

if TYPE_CHECKING:
    from diptych.networks.adm import AdmUNet


@dataclass(frozen=True, kw_only=True)
class AdmUNetConfig(ConditionedUNetConfig):
    """The shape of an `AdmUNet`. The defaults are ADM's, unconditional, for 256-px images."""

    kind: Literal["adm"] = "adm"
    in_channels: int = 3
    out_channels: int = 6
    channels: int = 256
    multipliers: tuple[int | float, ...] = (1, 1, 2, 2, 4, 4)
    """The first may be 0.5 (ADM for 512-px images)."""
    blocks: Annotated[int | tuple[int, ...], Within(0, 1000)] = 2
    """Residual blocks of a level on the way down, for all or for each; one more on the way up."""
    attention_levels: tuple[int, ...] = (3, 4, 5)
    """Levels whose residual blocks are each followed by attention. The middle always has one."""
    heads: int | None = None
    """Attention heads of every level, or none to derive it from `head_width`."""
    head_width: int | None = 64
    """Channels of an attention head at every level, or none to derive it from `heads`."""
    self_attention: bool = True
    """Whether attention is to the image too; else to the text alone (DeepFloyd IF's larger stages)."""
    classes: Annotated[int | None, Within(0, 2**24)] = None
    """Number of classes of a class-conditional network, or none."""
    context_width: int | None = None
    """Width of the text tokens to which every attention layer attends too (GLIDE, DeepFloyd IF), or none."""
    context_norm: bool = True
    """Normalise the tokens before each attention layer (DeepFloyd IF)."""
    context_norm_kind: Literal["group", "layer"] = "group"
    """How: over all tokens of a text together, its padding included (DeepFloyd IF, which pads all texts alike), or each
    token by itself (Imagen)."""
    context_projection: int | None = None
    """Width to which the tokens are projected first, or none."""
    text_pooling_heads: int | None = None
    """Heads of the attention by which the tokens are pooled and added to the time (DeepFloyd IF: 64), or none."""
    pooled_width: int | None = None
    """Width of a pooled text that is projected and added to the time (GLIDE), or none."""
    augmented: bool = False
    """Takes the noise augmentation level of the low-resolution image among `concat_channels`."""
    scale_shift: bool = True
    """The embedding scales and shifts the output of the norm; else it is added to its input."""
    residual_resampling: bool = True
    """Halve and double within residual blocks; else by a convolution."""
    activation: Literal["silu", "gelu"] = "silu"
    """Between layers."""
    preactivated: bool = False
    """The embedding is activated once and not in every block (DeepFloyd IF's larger stages)."""
    residual_scale: float = 1.0
    """Factor on the output of a residual block (DeepFloyd IF's larger stages: 0.7071)."""
    time_width: int | None = None
    """Width of the embedding; 4 * channels if none."""
    norm_groups: int = 32
    """Groups of every group norm."""
    dropout: float = 0.0
    """Dropout inside residual blocks."""

    def check(self) -> None:
        super().check()
        self.require_at_least(1, "norm_groups", "heads", "head_width", "classes", "context_width")
        self.require_at_least(1, "context_projection", "text_pooling_heads", "pooled_width", "time_width")
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")
        self.require(self.residual_scale > 0, "residual_scale", "be positive")
        whole = all(m > 0 and (self.channels * m).is_integer() for m in map(float, self.multipliers))
        self.require(
            whole, "multipliers", f"be positive and give whole numbers of channels, {self.channels} times each"
        )
        levels = range(len(self.multipliers))
        each = self.blocks if isinstance(self.blocks, tuple) else (self.blocks,) * len(levels)
        self.require(len(each) == len(levels) and min(each) >= 1, "blocks", "be at least 1, for all levels or for each")
        self.require(all(i in levels for i in self.attention_levels), "attention_levels", f"lie in {list(levels)}")
        self.require((self.heads is None) != (self.head_width is None), "heads", "be set, or head_width, but not both")
        for field in ("context_projection", "text_pooling_heads"):
            is_set = getattr(self, field) is not None
            self.require(not is_set or self.context_width is not None, field, "be none where context_width is")
        self.require(
            self.self_attention or self.context_width is not None, "self_attention", "be true without a context"
        )
        pooling = self.text_pooling_heads
        self.require(
            not pooling or (self.context_width or 0) % pooling == 0, "text_pooling_heads", "divide context_width"
        )
        for level in (*self.attention_levels, levels[-1]):
            width = self.level_channels(level)
            field = "heads" if self.heads else "head_width"
            self.require(
                width % (self.heads or self.head_width or 1) == 0,
                field,
                f"divide the {width} channels of level {level}",
            )

    def build(self) -> AdmUNet:
        from diptych.networks.adm import AdmUNet

        return AdmUNet(self)

    def level_channels(self, level: int) -> int:
        return round(self.channels * self.multipliers[level])

    def level_blocks(self, level: int) -> int:
        return self.blocks[level] if isinstance(self.blocks, tuple) else self.blocks

    @property
    def width(self) -> int:
        """Of the embedding."""
        return self.time_width or 4 * self.channels
