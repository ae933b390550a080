"""Images and captions a second of `diptych precompute`, beside those of the bare encoder on the same batches.

    OMP_NUM_THREADS=1 python -m benchmarks.precompute --out benchmarks/results/precompute

Shards of JPEGs are made: noise with the spectrum of photographs, 192 px on the shorter side, read as squares of 128 px,
each with a caption of its own. Three things are precomputed, each into a new folder, with as many workers as said:

- "latents": by a first stage of the shape of Stable Diffusion's (f = 8), narrow enough for a CPU.
- "no encoder": by an average of pixels, which costs next to nothing. What is left is all that precompute does besides:
  it bounds the rate of a GPU. Of it, "main" is what the process does that feeds the GPU; the workers have the rest.
- "texts": embeddings of captions alone, by a T5 of the smallest published shape, with random weights.

The bare encoder gets the batches that it got from precompute again, from memory, and what it gives is thrown away. Both
take turns; figures are medians over turns. CPU seconds are those of all processes of a side, workers included, and are
disturbed less by other work on the machine than seconds of the clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data_loading import photographs, processor
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.data.shards import write_shard
from diptych.encoders.base import TextEmbedding
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.training import precompute as module
from diptych.training.distributed import Team
from diptych.training.precompute import precompute
from diptych.training.precompute_texts import precompute_texts
from diptych.training.training_config import TrainingConfig

SIDE, SIZE = 192, 128
SHAPE = AutoencoderConfig(channels=32, norm_groups=8)
CPU = torch.device("cpu")
Side = Callable[[], None]


class Averages(nn.Module):
    """In place of a first stage: moments are averages of pixels."""

    config = SHAPE

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def moments(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.config.factor).repeat(1, 3, 1, 1)[:, : self.config.moment_channels]


class RandomT5:
    """The encoder of T5 v1.1 small without a tokenizer: a token for each word."""

    width, max_tokens, fingerprint = 512, 77, "random"

    def __init__(self) -> None:
        from transformers import T5Config, T5EncoderModel

        torch.manual_seed(0)
        shape = T5Config(d_model=self.width, d_kv=64, d_ff=1024, num_layers=8, num_heads=6, vocab_size=1000)
        self.model = T5EncoderModel(shape).eval()

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = [torch.tensor([hash(word) % 1000 for word in prompt.split()] or [0]) for prompt in prompts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return TextEmbedding.from_sequence(hidden.masked_fill(~mask[..., None], 0.0), mask)


class Recorded:
    """Calls of a function, kept to be made again."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.given = call, list[tuple[Any, ...]]()

    def __call__(self, *given: Any) -> Any:
        self.given.append(tuple(value.clone() if isinstance(value, Tensor) else value for value in given))
        return self.call(*given)

    @torch.no_grad()
    def again(self) -> None:
        for given in self.given:
            self.call(*given)


def data_of(folder: Path, images: int) -> ImageDataset:
    """Shards of so many captioned images: of 24 that differ."""
    found = photographs(24, SIDE)
    words = "a photograph of noise that looks like clouds at dusk over the sea".split()
    for first in range(0, images, 256):
        numbers = range(first, min(first + 256, images))
        samples = []
        for number in numbers:
            text = " ".join(words[: 4 + number % 9]) + f" {number}"
            samples.append((f"{number:06d}", {"jpg": found[number % 24], "txt": text.encode()}))
        write_shard(folder / f"{first:06d}.tar", samples)
    return open_dataset(DataConfig(path=str(folder), size=SIZE, held_out=0.0))


def used() -> tuple[float, float, float]:
    """(seconds of the clock, CPU seconds of this process and of the children that have ended, those of this alone)."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    mine = own.ru_utime + own.ru_stime
    return time.monotonic(), mine + ended.ru_utime + ended.ru_stime, mine


def timed(work: Side) -> tuple[float, float, float]:
    before = used()
    work()
    return tuple(now - then for now, then in zip(used(), before, strict=True))  # type: ignore[return-value]


@contextlib.contextmanager
def recording(owner: Any, name: str) -> Iterator[Recorded]:
    """Within, a method or function records what it is called with."""
    call = Recorded(getattr(owner, name))
    setattr(owner, name, call)
    try:
        yield call
    finally:
        setattr(owner, name, call.call)


def sides(dataset: ImageDataset, folder: Path, workers: int) -> dict[str, tuple[Side, Any, str]]:
    """Of each case what to measure, and the owner and name of what the encoder is called by."""
    torch.manual_seed(0)
    first, text, settings, numbers = Autoencoder(SHAPE), RandomT5(), TrainingConfig(workers=workers), iter(range(10**6))

    def latents(autoencoder: Any) -> None:
        precompute({"train": dataset}, autoencoder, None, folder / f"{next(numbers)}", CPU, settings=settings)

    def texts() -> None:
        precompute_texts({"train": dataset}, text, folder / f"{next(numbers)}", Team(0, 1, CPU))

    return {
        "latents": (lambda: latents(first), module, "encode"),
        "no encoder": (lambda: latents(Averages()), module, "encode"),
        "texts": (texts, text, "encode"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for results.json and results.txt")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    said = [f"{processor()}, {cores} cores, one thread, {given.workers} workers, PyTorch {torch.__version__}"]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "data").mkdir()
        dataset = data_of(folder / "data", given.images)
        for case, (work, owner, name) in sides(dataset, folder, given.workers).items():
            with recording(owner, name) as encoder:
                work()
            bare = encoder.again
            turns = [(timed(work), timed(bare)) for _ in range(given.turns)]
            found[case] = summary(turns, given.images)
            said.append(line(case, found[case]))
            print(said[-1] if len(said) > 2 else "\n".join(said), flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        machine = {"cpu": processor(), "cores": cores, "load": [round(load, 1) for load in os.getloadavg()]}
        values = {"machine": machine, "torch": str(torch.__version__), "images": given.images, "workers": given.workers}
        values |= {"pixels": SIZE, "turns": given.turns, "cases": found}
        (given.out / "results.json").write_text(json.dumps(values, indent=2) + "\n")
        (given.out / "results.txt").write_text("\n".join(said) + "\n")


def summary(turns: list[tuple[tuple[float, ...], tuple[float, ...]]], images: int) -> dict[str, float]:
    """Medians: rates, CPU time of an example, and the shares of the bare encoder in it."""

    def median(of: Callable[[tuple[float, ...], tuple[float, ...]], float]) -> float:
        return round(statistics.median(of(ours, bare) for ours, bare in turns), 4)

    return {
        "a_second": median(lambda ours, bare: images / ours[0]),
        "a_second_bare": median(lambda ours, bare: images / bare[0]),
        "by_clock": median(lambda ours, bare: bare[0] / ours[0]),
        "cpu_ms": median(lambda ours, bare: 1e3 * ours[1] / images),
        "cpu_ms_bare": median(lambda ours, bare: 1e3 * bare[1] / images),
        "by_cpu": median(lambda ours, bare: bare[1] / ours[1]),
        "main_ms_besides": median(lambda ours, bare: 1e3 * (ours[2] - bare[2]) / images),
    }


def line(case: str, it: dict[str, float]) -> str:
    return (
        f"{case:10}  {it['a_second']:7.1f} of {it['a_second_bare']:7.1f} a second ({it['by_clock']:.2f})   "
        f"{it['cpu_ms']:7.2f} to {it['cpu_ms_bare']:7.2f} CPU ms ({it['by_cpu']:.2f})   "
        f"main besides the encoder {it['main_ms_besides']:.3f} ms"
    )


if __name__ == "__main__":
    main()
