"""The settings of a training run, and which of them may change when a run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from diptych.core.config import Config, Within, plain, read_json
from diptych.core.config_compare import differences, former_values
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.training.evaluation_config import EvaluationConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Config):
    """How a model is trained. One step is one optimizer update with one batch."""

    renamed: ClassVar[dict[str, str]] = {"validation_pictures": "validation_images"}
    earlier: ClassVar[dict[str, Any]] = {"random": "generator"}

    steps: int = 100_000
    """Optimizer steps in all."""
    minutes: float | None = None
    """Finish after so many minutes of training (interruptions not counted), if the steps are not done before. A falling
    learning rate reaches its end then, so two runs have the same bits only if they are as quick."""
    batch_size: Annotated[int, Within(1, 2**20)] = 64
    """Images a step, over all processes and accumulated parts."""
    accumulation: int = 1
    """Parts that each process splits its share of a batch into, to save memory; the result is the same."""
    optimizer: Literal["adamw", "adam", "adafactor"] = "adamw"
    """AdamW, Adam, or Adafactor (little memory)."""
    learning_rate: float = 1e-4
    """The highest learning rate."""
    initial_learning_rate: float = 0.0
    """The learning rate from which the warm-up rises."""
    final_learning_rate: float = 0.0
    """The learning rate to which cosine, one-cycle and cool-down fall at the end of the run."""
    warmup: int = 100
    """Steps over which the learning rate rises: linearly, or with `one-cycle` by half a cosine."""
    schedule: Literal["constant", "cosine", "one-cycle"] = "constant"
    """Learning rate after the warm-up: constant, or half a cosine down to the last step or the last of `minutes`."""
    cooldown: float = 0.0
    """Fraction of the steps, or of `minutes` where these are over first, at the end, over which the learning rate falls
    linearly."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    decayed: Literal["matrices", "all"] = "matrices"
    """What decays: matrices and kernels, or biases and norms too, as PyTorch's optimizers do by themselves."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of the first and second moments of Adam."""
    clip: float = 1.0
    """Largest gradient norm; greater ones are scaled down. 0 turns clipping off."""
    ema: float = 0.999
    """Decay of the moving average of the weights, which is what is validated, sampled and saved."""
    ema_warmup: bool = True
    """Let the average forget the first steps sooner: decay min(ema, (1 + s) / (10 + s))."""
    seed: Annotated[int, Within(-(2**63), 2**63 - 1)] = 0
    """Seed of everything random in the run."""
    random: Literal["counter", "generator"] = "counter"
    """How the numbers of an example follow from its seed: `counter` hashes on the device of the run, `generator` seeds
    a generator on the CPU for each, as earlier versions did. The order of the examples is computed or drawn accordingly
    (`data/stream_order.py`). A run keeps what it began with."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bfloat16 autocast on GPUs that have it and on CPUs with AVX512-BF16 or AMX, else float32: on other CPUs
    bf16 is far slower. A run stays with what it began with."""
    compile: Literal["no", "blocks"] = "no"
    """Compile each block of the networks with torch.compile: faster on GPUs after some minutes; needs a C++ compiler.
    Texts are padded to the length of the longest that the model reads. Last bits differ."""
    cuda_graphs: bool = False
    """Capture the passes of the denoising network as CUDA graphs, so that small networks do not wait for launches.
    Texts are padded as with `compile`. Last bits differ."""
    channels_last: bool = False
    """Lay convolutions out with the channels last, which GPUs compute faster in bfloat16. Last bits differ."""
    activation_checkpointing: Literal["no", "blocks"] = "no"
    """Keep only the inputs of each block for the backward pass and compute the rest again there: about a third more
    work for much less memory. The result is the same."""
    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:1`."""
    shard: Literal["no", "fsdp", "hsdp"] = "no"
    """Under torchrun: each process has all weights, gradients, averages and moments of the optimizer (`no`), a part of
    them (`fsdp`), or a part among the processes of its machine (`hsdp`: less traffic between machines, more memory).
    The result is the same."""
    shard_group: Annotated[int | None, Within(2, 2**20)] = None
    """With `hsdp`, how many processes hold one copy together; none is those of one machine."""
    threads: Annotated[int | None, Within(1, 1024)] = None
    """CPU threads of PyTorch; none leaves PyTorch's choice."""
    workers: Annotated[int, Within(0, 256)] = 1
    """Threads or processes, for each process of the run, that prepare batches ahead while the device computes; 0
    prepares each when it is needed. Where images are decoded, as many as there are cores for each GPU."""
    worker_kind: Literal["auto", "threads", "processes"] = "auto"
    """What prepares them: `threads` that prepare a batch each, or `processes` that decode the images of each batch
    together; `auto` takes processes for more than one, where there are images to decode that data.in_memory does not
    keep. The batches are the same."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    validate_every: int = 1000
    """Steps between two validations; 0 is never."""
    validation_images: int = 256
    """The first so many validation images are used each time, with the same noise."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Distances of generated images to real ones, beside the validation loss; none by default."""
    sample_every: int = 1000
    """Steps between two sample grids; 0 is never."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; there is always one at the end."""
    keep: int = 2
    """Newest whole checkpoints that are kept."""
    changed_data: bool = False
    """Go on with a run whose data have changed. The order of their examples is another then: in the epoch that it was
    stopped in, some come twice and some not at all."""

    @property
    def intervals(self) -> tuple[int, ...]:
        """Steps between two of everything that is done at intervals."""
        evaluate_every = self.evaluation.every if self.evaluation.images else 0
        return self.log_every, self.validate_every, evaluate_every, self.sample_every, self.checkpoint_every

    def check(self) -> None:
        for field in (
            "steps",
            "batch_size",
            "accumulation",
            "log_every",
            "validation_images",
            "checkpoint_every",
            "keep",
        ):
            self.require(getattr(self, field) >= 1, field, "be at least 1")
        for field in ("warmup", "weight_decay", "clip", "workers", "validate_every", "sample_every"):
            self.require(getattr(self, field) >= 0, field, "be at least 0")
        self.require(self.accumulation <= self.batch_size, "accumulation", f"be at most batch_size ({self.batch_size})")
        self.require(self.learning_rate > 0, "learning_rate", "be more than 0")
        for field in ("initial_learning_rate", "final_learning_rate"):
            must = f"lie between 0 and learning_rate ({self.learning_rate:g})"
            self.require(0 <= getattr(self, field) <= self.learning_rate, field, must)
        self.require(self.minutes is None or self.minutes > 0, "minutes", "be more than 0")
        self.require(0 <= self.cooldown <= 1, "cooldown", "lie between 0 and 1")
        self.require(0 <= self.ema < 1, "ema", "lie between 0 and 1, 1 left out")
        self.require(all(0 <= b < 1 for b in self.betas), "betas", "lie between 0 and 1, 1 left out")
        one = not self.cuda_graphs or self.accumulation == 1
        self.require(one, "accumulation", "be 1 with cuda_graphs, whose memory holds one gradient")
        self.require(self.shard_group is None or self.shard == "hsdp", "shard_group", "be none without shard=hsdp")
        both = self.shard == "no" or not self.cuda_graphs
        self.require(both, "cuda_graphs", "be false with shard: weights are gathered anew in each step")
        plain = self.shard == "no" or not self.channels_last
        self.require(plain, "channels_last", "be false with shard: rows of weights are divided as they lie in memory")
        self.require(self.threads is None or self.threads >= 1, "threads", "be at least 1")


CHANGEABLE = {
    *("compile", "cuda_graphs", "channels_last", "activation_checkpointing"),
    *("steps", "minutes", "accumulation", "device", "threads", "workers", "worker_kind", "keep", "validation_images"),
    *("shard", "shard_group", "changed_data"),
    *("log_every", "validate_every", "evaluation", "sample_every", "checkpoint_every"),
}
"""Fields of `TrainingConfig` that do not decide what is learnt up to a step: a run may go on with others."""
KEPT = ("random",)
"""Fields of `TrainingConfig` that a run keeps as it began, whatever is asked for."""
CONFIG = "config.json"
EXAMPLES = "examples"
"""The fact in config.json that says what a run is trained on: how many examples, and which."""
LISTED = 8
"""So many settings that differ are named in one line."""


def finished_line(model: Path, step: int, config: TrainingConfig, changed: Sequence[str]) -> str:
    """What is said where a run that was finished after so many steps is started again; changed: as `compare_config`
    says."""
    limit = "steps" if step >= config.steps else "minutes"
    unused = f", and {', '.join(changed)} changes nothing" if changed else ""
    return f"{model} is finished ({step} steps){unused}; raise training.{limit} to train on"


def write_config(folder: Path, resolved: Mapping[str, Any]) -> None:
    """Save the values of a run's config, in the main process: others have none."""
    if resolved:
        write_text(folder / CONFIG, json.dumps(resolved, indent=2) + "\n")


def compare_config(
    folder: Path, config: Config | Mapping[str, Any], facts: Mapping[str, Any] | None = None
) -> tuple[list[str], dict[str, Any]]:
    """What differs from the `config.json` of a folder, and the values to save there; nothing is written. Raises a
    `UserError` if the run there was started with another.

    config: the recipe, which has the training settings under "training"; those in `CHANGEABLE` may differ, and those in
    `KEPT` stay as they were. facts: what else is saved with it. What differs is said as "training.steps=200 (was 100)".
    """
    path, changed, refused = folder / CONFIG, list[str](), list[tuple[str, Any, Any]]()
    resolved = {**plain(config), **(facts or {})}
    if path.exists():
        before = read_json(path, damaged=f"{path} is not readable JSON; train into another folder")
        changed += [f"{field}={json.dumps(old)}, as it began" for field, old in _keep(before, resolved)]
        changes = [*differences(before, config), *differences(before, dict(facts or {}))]
        began, now = (values.get(EXAMPLES) for values in (before, resolved))
        if began and now and began != now:
            changes = [one for one in changes if one[0].partition(".")[0] != EXAMPLES]
            changed.append(f"other data, {now['count']:,} examples (were {began['count']:,})")
            if not resolved["training"]["changed_data"]:
                refuse_data(folder, began, now)
        for field, old, new in changes:
            if field.startswith("training.") and field.removeprefix("training.") in KEPT:
                continue
            if field.startswith("training.") and field.split(".")[1] in CHANGEABLE:
                changed.append(f"{field}={json.dumps(new)} (was {json.dumps(old)})")
            elif field != "description":  # the recipe's, which a version may word anew
                refused.append((field, old, new))
        if refused:
            listed = ", ".join(
                f"{field}={json.dumps(old)}, not {json.dumps(new)}" for field, old, new in refused[:LISTED]
            )
            more = f", and {len(refused) - LISTED} more" if len(refused) > LISTED else ""
            other = next((f", of the recipe {old!r}" for name, old, _ in changes if name == "description"), "")
            them = " and ".join(field for field, *_ in refused) if len(refused) <= 2 else "these"
            raise UserError(
                f"{folder} holds a run with {listed}{more}{other}: train into another folder, or set {them} back to go "
                "on with it"
            )
    return changed, resolved


def refuse_data(folder: Path, began: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise the `UserError` for a run whose data are others than those that it began with."""
    others = f"{now['count']:,} now" if began["count"] != now["count"] else "as many others now"
    raise UserError(
        f"the data of {folder} have changed: it began with {began['count']:,} examples, and there are {others}; bring "
        "back what was there, or go on with what is there by training.changed_data=true (in this epoch some then come "
        "twice, and some not at all)"
    )


def _keep(before: Any, resolved: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Set the fields of `KEPT` in the values to save to those saved before; gives those that were others."""
    saved = before.get("training") if isinstance(before, dict) else None
    now = resolved.get("training")
    if not (isinstance(saved, dict) and isinstance(now, dict)):
        return
    for name in KEPT:
        began = saved.get(name, former_values(TrainingConfig)[name])
        if name in now and now[name] != began:
            now[name] = began
            yield f"training.{name}", began


def as_begun(config: TrainingConfig, folder: Path | str) -> TrainingConfig:
    """The config of a run, with the fields of `KEPT` as the run in the folder began."""
    with contextlib.suppress(UserError):  # there is none yet, or `compare_config` will complain
        saved, asked = read_json(Path(folder) / "config.json"), {"training": config.to_dict()}
        list(_keep(saved, asked))
        config = dataclasses.replace(config, **{name: asked["training"][name] for name in KEPT})
    return config
