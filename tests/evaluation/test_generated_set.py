"""Sets of images: the same bytes however they came to be, verified, and never mixed with another set."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.errors import UserError, warn
from diptych.core.hashing import stable_hash
from diptych.data.prompt_files import PromptRow
from diptych.evaluation import generated_set, set_mark
from diptych.evaluation.generated_set import generate_set
from diptych.evaluation.set_plan import SetPlan, image_seed
from diptych.models.metadata import read_metadata
from tests.models.latents import system

PROMPTS = [PromptRow(f"thing {i}", id=100 + i, fields={"category": "ab"[i % 2]}) for i in range(7)]


@dataclass
class RoundingModel:
    """Grey by prompt and seed; the last bit depends on what else is in the batch, as with real networks."""

    shade: int = 0
    calls: list[list[str]] = field(default_factory=list)

    def generate(self, prompts: list[str], *, seeds: list[int], callback: Any, steps: int = 2, **options: Any) -> Any:
        assert len(prompts) == len(seeds)
        self.calls.append(list(prompts))
        callback(0, 1, None)
        last = stable_hash(*prompts) % 2
        greys = [stable_hash(p, str(s), str(self.shade)) % 128 * 2 + last for p, s in zip(prompts, seeds, strict=True)]
        images = [Image.new("RGB", (8, 8), (grey,) * 3) for grey in greys]
        negatives = options.get("negative") or [""] * len(prompts)
        rows = [
            {"prompt": p, "negative": n or None, "seed": s, "steps": steps}
            for p, n, s in zip(prompts, negatives, seeds, strict=True)
        ]
        return type("R", (), {"images": images, "metadata": rows})


def make(out: Path, model: Any = None, **arguments: Any) -> generated_set.GeneratedSet:
    given = {"images_per_prompt": 3, "batch": 4, "quiet": True, "prompts": PROMPTS, **arguments}
    prompts = given.pop("prompts")
    return generate_set(model or RoundingModel(), prompts, out, **given)


def content(out: Path) -> dict[str, str]:
    """Hashes of all files of a folder; hidden ones are left out."""
    paths = (path for path in out.rglob("*") if path.is_file() and ".diptych" not in str(path.relative_to(out)))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The set as one process makes it without interruption."""
    out = tmp_path_factory.mktemp("whole")
    done = make(out)
    assert done.complete and (done.generated, done.kept, done.total) == (21, 0, 21)
    return content(out)


def test_files_and_manifest(tmp_path: Path) -> None:
    make(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 21
    assert lines[4] == {
        "file": "00000/00001-1.png",
        "row": 1,
        "copy": 1,
        "prompt": "thing 1",
        "seed": image_seed(0, 1, 1),
        "id": 101,
        "category": "b",
    }
    for line in lines:
        row = read_metadata(tmp_path / line["file"])
        assert (row["prompt"], row["seed"], row["steps"]) == (line["prompt"], line["seed"], 2)
    assert len({line["seed"] for line in lines}) == 21 and max(line["seed"] for line in lines) < 2**53


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
def test_any_number_of_processes_makes_the_same_set(tmp_path: Path, whole: dict[str, str], shares: int) -> None:
    done = [make(tmp_path, shard=(k, shares)) for k in reversed(range(shares))]
    assert [one.complete for one in done] == [False] * (shares - 1) + [True]
    assert sum(one.generated for one in done) == 21
    assert content(tmp_path) == whole


def killed(run: Callable[[], Any], moment: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run in a process that is killed at the so manyth file operation; whether it was."""
    child = os.fork()
    if child == 0:  # never returns
        left = [moment]

        def counted(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def operation(*arguments: Any, **more: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **more)

            return operation

        for name in ("replace", "fsync"):
            setattr(os, name, counted(name))
        try:
            run()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_set_that_is_killed_at_any_moment_goes_on(
    tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, moment in enumerate((1, 2, 5, 13, 34, 66)):
        out = tmp_path / str(moment)
        shares = 1 + number % 3
        assert killed(lambda out=out: make(out), moment, monkeypatch)
        for k in range(shares):
            killed(lambda out=out, k=k, n=shares: make(out, shard=(k, n)), moment + 7, monkeypatch)
        for k in range(shares):
            make(out, shard=(k, shares))
        assert make(out).complete
        assert content(out) == whole and not list(out.glob("**/.diptych*"))
    assert not killed(lambda: make(tmp_path / "done"), 10**6, monkeypatch)  # there are more moments than were tried
    assert content(tmp_path / "done") == whole


def test_images_that_are_one_object_have_their_own_texts(tmp_path: Path) -> None:
    class Same(RoundingModel):
        def generate(self, prompts: list[str], **more: Any) -> Any:
            result = super().generate(prompts, **more)
            result.images = [Image.new("RGB", (64, 64))] * len(prompts)
            return result

    make(tmp_path, Same(), images_per_prompt=20, batch=140)
    for line in map(json.loads, (tmp_path / "manifest.jsonl").read_text().splitlines()):
        assert read_metadata(tmp_path / line["file"])["seed"] == line["seed"]


def test_a_full_disk_is_said_and_nothing_is_lost(
    tmp_path: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = generated_set.write_image, [10]

    def full(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise UserError("the disk is full")
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="the disk is full"):
        patch.setattr(generated_set, "write_image", full)
        make(tmp_path)
    assert not (tmp_path / "manifest.jsonl").exists()
    assert make(tmp_path).kept == 10 and content(tmp_path) == whole


def test_a_batch_with_one_image_missing_is_computed_whole_and_the_others_stay(
    tmp_path: Path, whole: dict[str, str]
) -> None:
    make(tmp_path)
    (tmp_path / "00000" / "00001-2.png").unlink()  # number 5: in the batch 4 to 7
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    model = RoundingModel()
    assert (done := make(tmp_path, model)).generated == 1 and done.kept == 20
    assert model.calls == [["thing 1", "thing 1", "thing 2", "thing 2"]]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert content(tmp_path) == whole
    alone = tmp_path / "alone"  # the model does depend on the batch: in batches of one the set is another
    make(alone, batch=1)
    assert {n: h for n, h in content(alone).items() if n in whole and n.endswith("png")} != {
        name: value for name, value in whole.items() if name.endswith("png")
    }


def test_what_is_damaged_is_made_again(tmp_path: Path, whole: dict[str, str]) -> None:
    make(tmp_path)
    files = sorted(tmp_path.glob("00000/*.png"))
    files[0].write_bytes(files[0].read_bytes()[:-20])
    data = bytearray(files[1].read_bytes())
    data[len(data) // 2] ^= 1
    files[1].write_bytes(bytes(data))
    files[2].write_bytes(b"")
    done = make(tmp_path)
    assert done.damaged == [f"00000/{file.name}" for file in files[:3]] and done.generated == 3
    assert content(tmp_path) == whole


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 5}, "settings [seed 0, not 5]"),
        ({"steps": 9}, "settings [steps None, not 9]"),
        ({"images_per_prompt": 2}, "settings [images_per_prompt 3, not 2]"),
        ({"format": "jpeg"}, "settings [format png, not jpeg"),
        ({"negative": "x"}, "settings [negative None, not x]"),
        ({"prompts": PROMPTS[:6]}, "prompts [rows 7, not 6"),
        ({"prompts": [*PROMPTS[:6], PromptRow("thing 6", id=107)]}, "prompts [sha256"),
    ],
)
def test_a_set_of_something_else_is_refused_and_stays(
    tmp_path: Path, whole: dict[str, str], changed: dict[str, Any], said: str
) -> None:
    make(tmp_path)
    with pytest.raises(UserError) as error:
        make(tmp_path, **changed)
    assert said in str(error.value)
    assert content(tmp_path) == whole


def test_another_model_is_refused(tmp_path: Path) -> None:
    first, other = system(), system()
    with torch.no_grad():
        next(other.unet.parameters()).add_(1)
    generate_set(first, ["a cat"], tmp_path, quiet=True, steps=1)
    with pytest.raises(UserError, match=r"another folder|other model \[fingerprint \w{12}, not \w{12}\]"):
        generate_set(other, ["a cat"], tmp_path, quiet=True, steps=1)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"holds mine\.txt, which is no set of images"):
        make(tmp_path)
    (tmp_path / "mine.txt").unlink()
    (tmp_path / "00000").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "00000" / "00000-0.png")
    with pytest.raises(UserError, match=r"holds images and no set\.json"):
        make(tmp_path)


def test_an_image_of_another_set_is_refused_by_name(tmp_path: Path, whole: dict[str, str]) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b", RoundingModel(), steps=3)
    first, second = (tmp_path / "a" / "00000" / f"0000{i}-0.png" for i in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"00000-0\.png is no image of this set \(made with prompt 'thing 1'"):
        make(tmp_path / "a")
    first.write_bytes((tmp_path / "b" / "00000" / "00000-0.png").read_bytes())
    with pytest.raises(UserError, match=r"is no image of this set \(of another set"):
        make(tmp_path / "a")
    first.write_bytes(kept)
    assert content(tmp_path / "a") == whole


def test_a_mistake_that_the_first_image_shows_leaves_the_folder_free(tmp_path: Path) -> None:
    class Refusing(RoundingModel):
        def generate(self, *arguments: Any, steps: int = 2, **more: Any) -> Any:
            if steps == 5:
                raise UserError("too many")
            return super().generate(*arguments, steps=steps, **more)

    with pytest.raises(UserError, match="too many"):
        make(tmp_path, Refusing(), steps=5)
    assert make(tmp_path, Refusing(), steps=4).complete


def test_limit_may_be_raised(tmp_path: Path, whole: dict[str, str]) -> None:
    done = make(tmp_path, limit=2)
    assert done.complete and done.total == 6
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 6
    assert len(list(tmp_path.rglob("*.png"))) == 6
    assert make(tmp_path).generated == 15
    assert content(tmp_path) == whole
    make(tmp_path, limit=2)
    assert content(tmp_path) == whole  # the manifest of all stays


def test_another_batch_is_said_and_the_first_is_the_default(
    tmp_path: Path, whole: dict[str, str], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, limit=2)
    assert make(tmp_path, batch=None).complete and content(tmp_path) == whole
    assert capsys.readouterr().err == ""
    make(tmp_path / "b", limit=2)
    assert make(tmp_path / "b", batch=3).complete
    assert "was begun in batches of 4: images of batches of 3 may differ" in capsys.readouterr().err
    monkeypatch.setattr(set_mark.torch, "get_num_threads", lambda: 64)
    make(tmp_path)
    assert "threads a process: images made with 64 may differ" in capsys.readouterr().err


def test_jpeg(tmp_path: Path) -> None:
    done = make(tmp_path, format="jpeg", quality=80)
    assert done.complete and len(list(tmp_path.glob("00000/*.jpg"))) == 21
    with Image.open(tmp_path / "00000" / "00002-1.jpg") as image:
        row = json.loads(image.info["comment"])
        assert (row["prompt"], row["seed"]) == ("thing 2", image_seed(0, 2, 1))
    before = content(tmp_path)
    file = tmp_path / "00000" / "00002-1.jpg"
    file.write_bytes(file.read_bytes()[:300])
    assert make(tmp_path, format="jpeg", quality=80).damaged == ["00000/00002-1.jpg"]
    assert content(tmp_path) == before
    with pytest.raises(UserError, match=r"settings \[quality 80, not 81\]"):
        make(tmp_path, format="jpeg", quality=81)
    with pytest.raises(UserError, match="do not fit a JPEG"):
        make(tmp_path / "long", prompts=["a " * 40_000], format="jpeg")


def test_seeds_and_negative_prompts_of_rows(tmp_path: Path) -> None:
    rows = [PromptRow("a", seed=2**40, negative="bad"), PromptRow("a"), PromptRow("a", seed=3)]
    make(tmp_path, prompts=rows, images_per_prompt=2, negative="worse")
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [2**40, 2**40 + 1, image_seed(0, 1, 0), image_seed(0, 1, 1), 3, 4]
    assert [line["negative"] for line in lines] == ["bad"] * 2 + ["worse"] * 4
    assert read_metadata(tmp_path / lines[0]["file"])["negative"] == "bad"


def test_folders_stay_small_and_fields_keep_their_names() -> None:
    plan = SetPlan(rows=[PromptRow("a", fields={"file": "x", "page": 2})] * 3000, copies=8)
    names = [image.file for image in plan]
    folders = [name.split("/")[0] for name in names]
    assert len(set(names)) == 24_000 and max(folders.count(one) for one in {folders[0], folders[5000]}) == 1000
    assert plan.record(plan[8])["file"] == "00000/00001-0.png" and plan.record(plan[8])["fields"] == {"file": "x"}
    assert plan.record(plan[8])["page"] == 2
    many = SetPlan(rows=[PromptRow("a")] * 200_000)
    assert many.file(7, 0) == "00000/000007-0.png" and many.file(199_999, 0) == "00199/199999-0.png"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"seeds": [1]}, "seeds is not for a set"),
        ({"keep_stages": True}, "keep_stages is not for a set"),
        ({"negative": ["a"]}, "one negative prompt"),
        ({"shard": (2, 2)}, "a share is a number from 0 to 1 of 2"),
        ({"images_per_prompt": 0}, "images_per_prompt must be at least 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"format": "gif"}, "png or jpeg"),
        ({"prompts": [PromptRow("a", seed=2**63 - 1)]}, "seeds end at"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_only_a_few_warnings_are_shown(tmp_path: Path) -> None:
    class Warning_(RoundingModel):
        def generate(self, prompts: list[str], **more: Any) -> Any:
            for prompt in prompts:
                warn(f"{prompt} is strange")
            return super().generate(prompts, **more)

    with pytest.warns(UserWarning) as seen:
        make(tmp_path, Warning_())
    assert [str(one.message) for one in seen][4:] == [
        "thing 4 is strange",
        "more warnings are not shown: `notes` in each image's metadata has them",
    ]


# Real networks


def test_an_image_is_that_of_generate(tmp_path: Path) -> None:
    model = system()
    rows = [PromptRow("a cat"), PromptRow("a dog and a very long tail", negative="a cat"), PromptRow("a bird")]
    for batch in (1, 3):
        out = tmp_path / str(batch)
        generate_set(model, rows, out, images_per_prompt=2, batch=batch, quiet=True, steps=2, guidance=3.0)
        for line in map(json.loads, (out / "manifest.jsonl").read_text().splitlines()):
            options = {"negative": line["negative"]} if "negative" in line else {}
            alone = model.generate([line["prompt"]], seeds=[line["seed"]], steps=2, guidance=3.0, **options)
            with Image.open(out / line["file"]) as image:
                apart = np.abs(np.asarray(image, np.int16) - np.asarray(alone.images[0], np.int16)).max()
            assert apart <= (0 if batch == 1 else 1)


def test_a_prompt_beyond_the_limit_is_named_before_any_image(tmp_path: Path) -> None:
    model = system()
    with pytest.raises(UserError, match=r"prompt 2 of p\.txt: the prompt has \d+ tokens"):
        generate_set(model, ["a cat", "a cat " * 500], tmp_path / "out", quiet=True, source="p.txt")
    assert not (tmp_path / "out").exists()
    assert generate_set(
        model, ["a cat", "a cat " * 500], tmp_path / "out", quiet=True, steps=1, long_prompts="cut"
    ).notes["cut"]
