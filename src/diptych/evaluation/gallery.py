"""A page of generated images by prompt, for one model or two side by side: one HTML file beside the images, which opens
without a server and asks nothing of the network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "gallery"
POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Nothing but images is loaded, and those from where the page is."""


@dataclass(frozen=True, kw_only=True)
class GalleryImage:
    """One image of a prompt."""

    file: str
    """From the page's folder."""
    note: str
    """Its seed, scores and the like."""


@dataclass(frozen=True, kw_only=True)
class GalleryPrompt:
    """One prompt, and each model's images of it, as many of each."""

    prompt: str
    category: str
    images: Mapping[str, Sequence[GalleryImage]]
    notes: Mapping[str, str]
    """Of each model: its scores on this prompt."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The content of a page."""

    title: str
    facts: Mapping[str, str]
    """What was measured, and how."""
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    """A table of scores: the names of its rows first."""
    remark: str
    """Beneath the table."""
    prompts: Sequence[GalleryPrompt]
    size: tuple[int, int]
    """Width and height of an image, for the space that it takes before it is loaded."""

    def html(self) -> str:
        """The page."""
        text = html.escape
        categories = list(dict.fromkeys(one.category for one in self.prompts))
        facts = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in self.facts.items())
        head = "".join(f'<th scope="col">{text(name)}</th>' for name in self.columns)
        body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>\n" for row in self.rows)
        filters = "".join(
            f'<button type="button" data-category="{text(name)}" aria-pressed="{str(not name).lower()}">'
            f"{text(name or 'All')} ({len(self.prompts) if not name else self.count(name)})</button>"
            for name in ["", *categories]
        )
        across = max((len(one.images) for one in self.prompts), default=1)
        style = f":root {{ --models: {across}; --ratio: {self.size[0]} / {self.size[1]}; }}\n{asset('gallery.css')}"
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="referrer" content="no-referrer">
<title>{text(self.title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
<h1>{text(self.title)}</h1>
<dl>{facts}</dl>
</header>
<section>
<h2>Scores</h2>
<div class="wide" tabindex="0" role="region" aria-label="Scores"><table><thead><tr>{head}</tr></thead>
<tbody>
{body}</tbody></table></div>
<p class="quiet">{text(self.remark)}</p>
</section>
<main>
<h2>Images</h2>
<nav aria-label="Categories">{filters}</nav>
{"".join(self.article(one) for one in self.prompts)}</main>
<dialog aria-label="Enlarged image"><h3></h3><div class="pair"></div>
<form method="dialog"><button type="button" data-step="-1" aria-label="Previous image">‹</button>
<button>Close</button><button type="button" data-step="1" aria-label="Next image">›</button></form></dialog>
<script>
{asset("gallery.js")}</script>
</body>
</html>
"""

    def count(self, category: str) -> int:
        return sum(one.category == category for one in self.prompts)

    def article(self, one: GalleryPrompt) -> str:
        """A prompt with its images."""
        text = html.escape
        columns = []
        for model, images in one.images.items():
            tiles = "".join(self.tile(model, copy, image) for copy, image in enumerate(images))
            note = one.notes.get(model, "")
            columns.append(
                f'<figure><div class="images">{tiles}</div>'
                f"<figcaption>{text(model)}{': ' if note else ''}{text(note)}</figcaption></figure>"
            )
        return (
            f'<article data-category="{text(one.category)}"><h3>{text(one.prompt)}</h3>'
            f'<p class="quiet">{text(one.category)}</p><div class="models">{"".join(columns)}</div></article>\n'
        )

    def tile(self, model: str, copy: int, image: GalleryImage) -> str:
        """One image, enlarged by a click."""
        title, alt = html.escape(f"{model}: {image.note}"), html.escape(f"{model}, image {copy + 1}")
        return (
            f'<button type="button" class="image" data-copy="{copy}" title="{title}">'
            f'<img loading="lazy" decoding="async" src="{quote(image.file)}" alt="{alt}" '
            f'width="{self.size[0]}" height="{self.size[1]}"></button>'
        )


def asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
