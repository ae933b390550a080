"""Which kinds of models take which options of `generate`, and under which headings help lists them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from diptych.core.errors import UserError, unknown
from diptych.core.option_fields import Option, options_of
from diptych.models.options import (
    IMAGE,
    KNOBS,
    AutoregressiveOptions,
    CascadeOptions,
    LatentOptions,
    PixelOptions,
    names_of,
)

GROUPS = {
    "sampling": "",
    KNOBS: "for the samplers that have them; the others refuse them",
    "prompts": "",
    IMAGE: "",
    "gradient guidance": "",
    "latent models": "",
    "pixel models": "",
    "cascades": "",
    "autoregressive models": "",
}
"""The headings under which `--help` and docs/options.md list options, and what they say beneath."""


MODELS: dict[str, type] = {
    "latent": LatentOptions,
    "pixel": PixelOptions,
    "cascade": CascadeOptions,
    "autoregressive": AutoregressiveOptions,
}
"""Kind of model -> its options."""


DIFFUSION = frozenset(("latent", "pixel", "cascade"))


TAKERS = {
    frozenset(MODELS): "all models",
    DIFFUSION: "diffusion models",
    frozenset(("pixel", "cascade")): "pixel models",
    frozenset(("latent", "pixel", "autoregressive")): "models of one stage",
    frozenset(("latent",)): "latent models",
    frozenset(("cascade",)): "cascades",
    frozenset(("autoregressive",)): "autoregressive models",
}
"""The kinds of models that take an option -> what they are together."""


def refusal(name: str, options: Mapping[str, Option]) -> UserError:
    """What to raise for an option that is none of these."""
    if option := names_of(all_options()).get(name):
        return UserError(f"{name} is for {takers(option)}, and this model is none of them: leave it out")
    return unknown(f"generate has no option {name!r}", name, options)


@functools.cache
def all_options() -> Mapping[str, Option]:
    """Every option of any model by its name; one value for each stage where cascades take it."""
    found: dict[str, Option] = {}
    for kind in MODELS.values():
        found |= {name: one for name, one in options_of(kind).items() if name not in found or one.per_stage}
    return found


def takers(name: str) -> str:
    """The models that take an option, in words."""
    kinds = frozenset(model for model, kind in MODELS.items() if name in options_of(kind))
    enlarging = all_options()[name].enlarging
    kind = "models" if enlarging and kinds == DIFFUSION else TAKERS[kinds]
    return f"{kind} that enlarge images" if enlarging else kind
