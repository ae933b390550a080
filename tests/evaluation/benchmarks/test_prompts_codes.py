"""The same judge measures a model of codes: the study knows it by `generate` alone."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from diptych.evaluation.benchmarks.prompts import evaluate
from diptych.models.judge import Judge
from tests.models.codes import system
from tests.models.latents import SIZE


def test_an_autoregressive_model_is_evaluated(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    """Random weights, so what it paints is no better than chance; words that its tokenizer never met it reads too."""
    console = Console(file=io.StringIO())
    model = system(temperature=0.9, top_k=7)
    results = evaluate(model, toy_data, tmp_path, judge=judge, console=console, images=12, scenes=2, guidance=1.5)
    settings = {key: results["settings"][key] for key in ("temperature", "top_k", "top_p", "guidance", "size")}
    assert settings == {"temperature": 0.9, "top_k": 7, "top_p": 1.0, "guidance": 1.5, "size": [SIZE, SIZE]}
    assert set(results["groups"]) == {"seen", "held-out"}
    for group in results["groups"].values():
        assert group["generated"]["top1"]["value"] < group["real"]["top1"]["value"]
    assert (tmp_path / "results.md").is_file() and list(tmp_path.glob("*.png"))
