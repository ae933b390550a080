"""What `generate` returns, and the `repr` of models."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import nn

from diptych.core.values import short_repr


@dataclass
class Result:
    """The images that `generate` made, and for each of them all that is needed to make it again."""

    images: list[Image.Image]
    metadata: list[dict[str, Any]] = field(default_factory=list)
    stages: list[list[Image.Image]] = field(default_factory=list)
    """The images of each stage of a cascade, smallest first, where they were asked for."""

    def _repr_html_(self) -> str:
        """For notebooks: the images, each above its prompt and seed."""
        rows = zip(self.images, [*self.metadata, *({} for _ in self.images)], strict=False)
        return "".join(
            '<figure style="display: inline-block; margin: 4px">'
            f'<img src="data:image/png;base64,{_png(image)}" width="{image.width}" height="{image.height}">'
            f"<figcaption>{html.escape(str(values.get('prompt', '')))} {values.get('seed', '')}</figcaption></figure>"
            for image, values in rows
        )

    def __repr__(self) -> str:
        return f"Result({len(self.images)} images: {short_repr([values.get('prompt') for values in self.metadata])})"


def _png(image: Image.Image) -> str:
    """An image as PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


class OneLineRepr:
    """A model with a `repr` of one line: `LatentDiffusion(64 px; unet 10.2 M, autoencoder 3.8 M; cpu)`."""

    def __repr__(self) -> str:
        configs = getattr(self, "configs", None) or [getattr(self, "config")]  # noqa: B009
        low = getattr(configs[0], "low_size", None)
        sizes = [*([] if low is None else [low]), *(config.size for config in configs)]
        parts = dict(self.named_children()) if isinstance(self, nn.Module) else {}
        if (first_stage := getattr(self, "autoencoder", None)) is not None:
            parts["autoencoder"] = first_stage
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        texts = [
            " -> ".join(map(str, sizes)) + " px",
            ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in counts.items()),
        ]
        device = next(self.parameters()).device if isinstance(self, nn.Module) else getattr(self, "device", "")
        return f"{type(self).__name__}({'; '.join(filter(None, [*texts, str(device)]))})"

    @property
    def size(self) -> int:
        """Side of its images, as it was trained."""
        return (getattr(self, "configs", None) or [getattr(self, "config")])[-1].size  # noqa: B009

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of a class-conditional model; none of any other."""
        text = (getattr(self, "configs", None) or [getattr(self, "config")])[0].text  # noqa: B009
        return tuple(text.names) if getattr(text, "kind", None) == "class" else ()
