"""What to say of a prompt and a size before anything is generated: tokens, what would be cut, what is unfamiliar."""

from __future__ import annotations

from typing import Any

from diptych.core.errors import UserError
from diptych.encoders.base import PromptOptions
from diptych.encoders.prompt_weights import encode_prompts, encoder_name
from diptych.encoders.tokenizers import chunk_ends, encode_text
from diptych.models.request import Request
from diptych.models.size_warning import warn_of_size
from diptych.studio.public_text import without_paths
from diptych.studio.recorded_warnings import recorded_warnings


def check_prompt(model: Any, prompt: str, size: list[int] | None = None) -> dict[str, Any]:
    """`tokens` of a prompt and the `limit` of what the model reads, the end of the prompt that would be `cut`, and
    `warnings`. Without a text encoder, or where the prompt is empty, tokens and limit are None."""
    encoder = getattr(model, "text", None)
    tokenizer = getattr(encoder, "tokenizer", None)
    row: dict[str, Any] = {"tokens": None, "limit": None, "cut": "", "error": None}
    with recorded_warnings() as warnings:
        if size is not None:
            warn_of_size(size, model.size)
        if encoder is not None and prompt.strip():
            try:
                row |= read_prompt(model, encoder, tokenizer, prompt)
            except UserError as error:
                row["error"] = without_paths(str(error))
    return row | {"warnings": [without_paths(text) for text in warnings]}


def read_prompt(model: Any, encoder: Any, tokenizer: Any, prompt: str) -> dict[str, Any]:
    """Tokens, limit and what is cut; warns of what the model does not know."""
    if tokenizer is None:
        encoder.encode([prompt])  # a class or a layout: an error, or nothing to say
        return {}
    ends = list(chunk_ends(tokenizer, prompt, encoder.max_tokens))
    row = {"tokens": len(encode_text(tokenizer, prompt).ids), "limit": encoder.max_tokens}
    cut = prompt[ends[0] :].strip() if len(ends) > 1 else ""
    domain = getattr(model, "familiar", None)
    if domain is not None and domain.encoder == encoder_name(encoder):
        request = Request([prompt], [""], [0], PromptOptions.read(False, "cut"))
        encode_prompts(encoder, [prompt[: ends[0]]], request, domain)
    return row | {"cut": cut}
