"""Where a tensor of ours lies in a published file, and back: names, and the few ways in which shapes differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.weights.lazy import LazyCheckpoint


class Piece(NamedTuple):
    """One of our tensors in a published file."""

    key: str
    """The name there."""
    part: int = 0
    """Which part of that tensor is ours, along its first axis: of query, key and value in one, the first is 0."""
    parts: int = 1
    """How many parts that tensor has."""
    heads: int = 1
    """The parts follow one another within each of so many heads, as in ADM's older attention; 1: part after part."""
    ones: int = 0
    """Axes of length 1 at the end of theirs that ours lacks: 2 where a 1x1 convolution is our linear layer."""


Layout = Mapping[str, Piece]
"""Our names -> where each lies."""


def pieces(layout: Layout, published: LazyCheckpoint) -> LazyCheckpoint:
    """Our tensors by our names, each made when it is asked for from the published one that holds it.

    Raises a `UserError` that names the first published key that is missing, unexpected, or of a shape without such
    parts.
    """
    read, shapes = {}, {}
    for name, piece in layout.items():
        if piece.key not in published:
            missing = sorted({p.key for p in layout.values()} - set(published))
            raise UserError(f"{published.source}: key {piece.key!r} is missing ({len(missing)} missing in all)")
        theirs = published.shapes[piece.key]
        ours = theirs[: len(theirs) - piece.ones]
        if theirs[len(ours) :] != (1,) * piece.ones or not ours or ours[0] % (piece.parts * piece.heads):
            raise UserError(f"{published.source}: key {piece.key!r} has the unexpected shape {theirs}")
        shapes[name] = (ours[0] // piece.parts, *ours[1:])
        read[name] = lambda piece=piece, shape=shapes[name]: taken(published[piece.key], piece, shape)
    if extra := set(published) - {piece.key for piece in layout.values()}:
        raise UserError(f"{published.source}: unexpected key {min(extra)!r} ({len(extra)} in all)")
    return LazyCheckpoint(read, shapes, published.source, {name: piece.key for name, piece in layout.items()})


def taken(theirs: Tensor, piece: Piece, shape: tuple[int, ...]) -> Tensor:
    """Our part of a published tensor."""
    if piece.parts == 1:
        return theirs.reshape(shape)
    grouped = theirs.reshape(piece.heads, piece.parts, shape[0] // piece.heads, *shape[1:])
    return grouped[:, piece.part].reshape(shape)


def published(layout: Layout, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published tensors made of ours: the inverse of `pieces`."""
    pieces: dict[str, dict[int, tuple[Piece, Tensor]]] = {}
    for name, tensor in ours.items():
        piece = layout[name]
        pieces.setdefault(piece.key, {})[piece.part] = (piece, tensor)
    made = {}
    for key, parts in pieces.items():
        piece, first = parts[0]
        if len(parts) != piece.parts:
            raise ValueError(f"{key} is made of {piece.parts} parts, and {len(parts)} are there")
        grouped = [parts[number][1].reshape(piece.heads, -1, *first.shape[1:]) for number in range(piece.parts)]
        whole = torch.stack(grouped, 1).flatten(0, 2) if piece.parts > 1 else first
        made[key] = whole.reshape(*whole.shape, *(1,) * piece.ones)
    return made
