"""Captions from the data to the batch: read or not, cut or skipped where long, quarantined where unreadable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.cli import main as cli
from diptych.core import progress
from diptych.core.errors import UserError
from diptych.data.annotations import write_captions
from diptych.data.dataset import DataConfig, open_dataset
from diptych.encoders.class_configs import ClassConfig, LayoutConfig
from diptych.encoders.configs import JointTransformerConfig, MiniLMConfig
from diptych.encoders.joint import train_tokenizer
from diptych.encoders.layout import parse_layout
from diptych.encoders.tokenizers import truncated
from diptych.recipes import all_recipes, get
from diptych.training import experiment_data as reading
from tests.data.tiny import foreign_shard, png
from tests.models.latents import JOINT, autoencoder, minilm
from tests.recipes.test_recipes import FIRST, JOINT_TEXT

WORDS = [word for word in JOINT_TEXT if not word.startswith(("system.autoencoder", "system.precomputed"))]
SHORT = ["training.steps=2", "training.validate_every=0", "training.sample_every=0", "training.checkpoint_every=2"]
LONG = "a red ball on a blue box " * 40


def images(folder: Path, count: int, caption: Any = "a red picture") -> Path:
    """Pictures with this caption, or with none."""
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i:02d}.png").write_bytes(png((16, 16), (9 * i, 60, 90)))
        if caption is not None:
            (folder / f"{i:02d}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        *(
            (name, False)
            for name in ("kl-f8", "vq-f4", "ldm-ffhq", "ddpm", "adm-bedrooms", "sr3", "emoji-tiny-decoder")
        ),
        *((name, True) for name in ("sd1", "ldm-cin256", "imagen-base", "if-2-m", "adm-64", "emoji-codes", "judge")),
        ("adm-64-classifier", True),
    ],
)
def test_recipes_that_read_captions(name: str, reads: bool) -> None:
    assert (get(name).system.text_config is not None) == reads


def test_caption_limit_of_every_recipe() -> None:
    """Without weights, unless its files lie elsewhere or its tokenizer is learned from the captions."""
    for name, recipe in all_recipes().items():
        try:
            fit = recipe.system.caption_fit()
        except UserError as error:
            assert "no " in str(error), name
            continue
        short = "dog 0 0 1 1" if isinstance(recipe.system.text_config, LayoutConfig) else "0"
        assert fit is None or fit(short) == short, name


def test_first_stage_trains_without_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "pictures", 11, None)
    (tmp_path / "pictures" / "03.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "x.gif").write_bytes(b"GIF89a")
    command = ["train", "emoji-autoencoder", *FIRST, *SHORT, "--run-dir", "runs/first"]
    assert cli.main([*command, "data.held_out=1e-9"]) == 0
    messages = capsys.readouterr().err
    assert "pictures: 11 examples to train on, 0 held out, 1 left out (x.gif: .gif images are not read" in messages
    assert "data.held_out=1e-09 sets none of these 11 apart: nothing is validated" in messages
    assert messages.count("03.png in pictures: not a PNG, JPEG or WebP image") == 1
    record = (tmp_path / "runs" / "first" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in record] == ["03.png"]
    assert not list((tmp_path / "pictures").glob("quarantine*"))
    assert cli.main([*command, "data.held_out=1e-9", "training.steps=4"]) == 0
    assert len((tmp_path / "runs" / "first" / "quarantine.jsonl").read_text().splitlines()) == 1
    assert (
        cli.main(
            [
                "train",
                "emoji-latent",
                *WORDS,
                "system.autoencoder=runs/first",
                "system.precomputed=none",
                "--run-dir",
                "runs/words",
            ]
        )
        == 2
    )
    assert "00.png in pictures: no caption, and 10 more" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "words").exists()


@pytest.mark.parametrize(
    ("text", "policy"), [pytest.param("joint", "cut", marks=pytest.mark.slow), ("joint", "skip"), ("frozen", "cut")]
)
def test_long_captions_are_cut_or_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], policy: str, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    images(tmp_path / "pictures", 12)
    (tmp_path / "pictures" / "05.txt").write_text(LONG)
    from diptych.models.first_stage import save_autoencoder

    save_autoencoder(autoencoder(), tmp_path / "first")
    values = {"kind": "autoencoder", "network": autoencoder().config.to_dict()}
    (tmp_path / "first" / "config.json").write_text(json.dumps(values))
    recipe = [*WORDS, *SHORT, f"data.long_captions={policy}", "system.autoencoder=first"]
    if text == "frozen":
        width = [f"system.model.unet.{field}=384" for field in ("context_width", "pooled_width")]
        recipe = [*recipe, 'system.model.text={"kind": "minilm"}', *width]
    assert cli.main(["precompute", "emoji-latent", *recipe, "--out", "cache"]) == 0
    train = ["train", "emoji-latent", *recipe, "training.batch_size=12"]
    assert cli.main([*train, "system.precomputed=cache", "--run-dir", "runs/kept"]) == 0
    assert cli.main([*train, "system.precomputed=none", "--run-dir", "runs/fly"]) == 0
    messages = capsys.readouterr().err
    assert "its caption is longer than the text encoder reads" in messages and "05.png" in messages
    record = [json.loads(line) for line in (tmp_path / "runs" / "fly" / "quarantine.jsonl").read_text().splitlines()]
    assert [one["key"] for one in record] == ["05.png"]
    monkeypatch.setattr(progress, "FIRST", 0.0)
    assert cli.main(["data", "check", "pictures", "--recipe", "emoji-latent", "--json", *recipe]) == 1
    out, messages = capsys.readouterr()
    assert "reading: 1 of" in messages
    if text == "joint":  # for the tokenizer; a frozen one reads them only where the folder has not been read yet
        assert "reading captions: 1 of 12" in messages
    report = json.loads(out)
    assert report["readable"] == (12 if policy == "cut" else 11)
    assert len(report["changed"]) == (policy == "cut") and len(report["broken"]) == (policy == "skip")


def test_captions_are_cut_between_words() -> None:
    tokenizer = train_tokenizer(["a red ball on a blue box"] * 3, 64)
    for tokens in (3, 4, 8, 24):
        for text in (LONG, "x" * 500, "réd " * 50, " " * 99 + LONG, "a red"):
            short = truncated(tokenizer, text, tokens)
            assert text.startswith(short) and len(tokenizer.encode(short).ids) <= tokens
            assert short or not text.strip() or tokens == 3
    endless = ["y" * 10**6, "a red ball on a blue box"]  # a word that is learned from would take an hour
    assert train_tokenizer(endless, 64).get_vocab() == train_tokenizer(["", endless[1]], 64).get_vocab()
    assert truncated(tokenizer, LONG, 8) == "a red ball on a blue"
    assert minilm().encode([MiniLMConfig().fitting()(LONG)]).sequence.shape[1] <= 77
    network = JOINT.to_dict()["network"]
    assert isinstance(JointTransformerConfig.from_dict({"network": network}), JointTransformerConfig)


def test_layout_and_class_captions() -> None:
    boxes = [f"thing {0.01 * i:g} 0 {0.02 * i + 0.1:g} 1" for i in range(40)]
    fit = LayoutConfig().fitting()
    assert len(parse_layout(fit("; ".join(boxes)))) == 30
    assert fit("; ".join(boxes[:30])) == "; ".join(boxes[:30])
    with pytest.raises(UserError, match="cannot read the box"):
        fit("nothing of the sort")
    with pytest.raises(UserError, match="no class of this model"):
        ClassConfig(classes=2).fitting()("7")


def test_unreadable_captions_are_quarantined(tmp_path: Path) -> None:
    """Of shards too, whose metadata is not read when they are opened: captions are asked for by all before training."""
    members = [
        (f"{i:02d}.{e}", png() if e == "png" else b'{"caption": "%d"}' % (i % 2))
        for i in range(40)
        for e in ("png", "json")
    ]
    members[5] = ("02.json", b'{"caption": "70000"}')
    members[9] = ("04.json", b"{")
    foreign_shard(tmp_path / "a.tar", members)
    data = open_dataset(DataConfig(path=str(tmp_path), size=16, max_failure_rate=0.1))
    reading.fit_all(ClassConfig(classes=2).fitting(), data)
    assert reading.all_captions(data) == ["0", "1"]
    assert {key for _, key in data.quarantine.broken} == {"02", "04"}
    assert all(data[i].captions[0] in "01" for i in range(40))


def test_splits_share_one_quarantine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "pictures", 30)
    (tmp_path / "pictures" / "07.txt").write_bytes(b"caf\xe9")
    recipe = get("emoji-latent").override([f"data.path={tmp_path / 'pictures'}", "data.held_out=0.3", "data.flip=0.5"])
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        splits = reading.open_splits(recipe, tmp_path / rank / "quarantine.jsonl")
        messages = capsys.readouterr().err
        assert messages.count("examples to train on") == (rank == "0")
        (tmp_path / rank).mkdir()
        splits["train"].quarantine.flush()
        assert (tmp_path / rank / "quarantine.jsonl").exists() == (rank == "0")
    assert len(splits["train"]) + len(splits["held-out"]) == 29
    assert (splits["train"].config.flip, splits["held-out"].config.flip) == (0.5, 0.0)
    assert splits["train"].quarantine is splits["held-out"].quarantine


def test_coco_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = images(tmp_path / "train2017", 3, None)
    file = tmp_path / "captions_train2017.json"
    rows = [{"image_id": i % 3, "caption": f"caption {i}.\n"} for i in range(6)]
    names = [{"id": i, "file_name": f"{i:02d}.jpg"} for i in range(4)]
    file.write_text(json.dumps({"images": names, "annotations": rows}))
    assert cli.main(["data", "captions", str(file), "--pictures", str(folder)]) == 0
    assert "6 captions of 3 images" in capsys.readouterr().out
    data = open_dataset(DataConfig(path=str(folder), size=16))
    assert [data[i].captions for i in range(3)] == [(f"caption {i}.", f"caption {i + 3}.") for i in range(3)]
    with pytest.raises(UserError, match="is there already"):
        write_captions(file, folder)
    (folder / "metadata.jsonl").unlink()
    for values in ({}, [], {"images": [{}]}, {"images": names, "annotations": [{"image_id": 9, "caption": "x"}]}):
        file.write_text(json.dumps(values))
        with pytest.raises(UserError, match="not as COCO writes its captions"):
            write_captions(file, folder)
    assert not (folder / "metadata.jsonl").exists()
