"""Files of prompts: every kind that is read, and lines that cannot be used, by name."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from diptych.core.errors import UserError
from diptych.data.prompt_files import PromptRow, read_prompts

COCO = {
    "images": [{"id": 9, "file_name": "COCO_val2014_9.jpg"}],
    "annotations": [{"image_id": 9, "id": 4, "caption": "A dog.\n"}, {"image_id": 8, "id": 5, "caption": "A cat"}],
}


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.txt", "a cat\r\n a dog \n\n\n", [PromptRow("a cat"), PromptRow("a dog")]),
        ("bom.txt", b"\xef\xbb\xbfa cat\n", [PromptRow("a cat")]),
        ("16.txt", "a cat\nübel".encode("utf-16"), [PromptRow("a cat"), PromptRow("übel")]),
        (
            "drawbench.csv",
            'Prompts,Category\r\n"A cat, sitting",Colors\r\nA dog,Gary Marcus et al. \r\n',
            [
                PromptRow("A cat, sitting", fields={"category": "Colors"}),
                PromptRow("A dog", fields={"category": "Gary Marcus et al."}),
            ],
        ),
        (
            "a.tsv",
            "Key\tCaption\tseed\tnegative\tnote\n7\ta, b\t12\tbad\tx\n8\tc\t\t\ty\n",
            [
                PromptRow("a, b", "7", 12, "bad", {"note": "x"}),
                PromptRow("c", "8", None, None, {"note": "y"}),
            ],
        ),
        (
            "a.jsonl",
            '{"caption": "b", "prompt": "a", "id": 3, "seed": 0, "image_id": 5}\n\n"c"\n',
            [PromptRow("a", 3, 0, None, {"caption": "b", "image_id": 5}), PromptRow("c")],
        ),
        ("list.json", '["a", {"text": "b"}]', [PromptRow("a"), PromptRow("b")]),
        (
            "captions_val2014.json",
            json.dumps(COCO),
            [
                PromptRow("A dog.", 4, fields={"image_id": 9, "file_name": "COCO_val2014_9.jpg"}),
                PromptRow("A cat", 5, fields={"image_id": 8}),
            ],
        ),
    ],
)
def test_every_kind_of_file_is_read(tmp_path: Path, name: str, content: str | bytes, rows: list[PromptRow]) -> None:
    assert read_prompts(written(tmp_path, name, content)) == rows


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "a cat\n\na dog\n \u200b\nx", "a.txt, line 2: the prompt is empty; 1 more of 5 are broken too"),
        ("a.txt", b"a cat\n\xe9t\xe9", "byte 0xe9 in line 2"),
        ("a.txt", " \n", "a.txt holds no prompts"),
        ("a.txt", "a\0b", "NUL bytes"),
        ("a.csv", "prompt,seed\na,1\nb,x\n", "a.csv, line 3: its seed is 'x'"),
        ("a.csv", "prompt,seed\na,-1\n", "a.csv, line 2: its seed is '-1'"),
        ("a.csv", "prompt\na cat, sitting\n", "a.csv, line 2: it has 2 values, and the first line 1"),
        ("a.csv", 'prompt\n"a cat\nb\n', "a.csv, line 2: its quotation mark is never closed"),
        ("a.csv", "a cat\na dog\n", "a.csv: its first line names none of the fields prompt, prompts, caption, text"),
        ("a.csv", "prompt,id\n,3\n", "a.csv, line 2: the prompt is empty"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt":', "a.jsonl is not JSON (line 2"),
        ("a.jsonl", '{"prompt": 3}', "a.jsonl, line 1: its prompt is a number"),
        ("a.jsonl", '{"words": "a"}', "a.jsonl, line 1: it has no prompt, prompts, caption or text"),
        ("a.jsonl", '{"prompt": "a", "seed": 1.5}', "its seed is 1.5"),
        ("a.jsonl", '{"prompt": "a", "seed": true}', "its seed is True"),
        ("a.jsonl", f'{{"prompt": "a", "seed": {2**63}}}', "not a whole number from 0 to 2^63 - 1"),
        ("a.jsonl", '{"prompt": "a", "id": [1]}', "its id is [1]"),
        ("a.jsonl", '{"prompt": "a", "negative": 4}', "its negative prompt is 4"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "no valid Unicode"),
        ("a.jsonl", "[1]", "a.jsonl, line 1: it is a list"),
        ("a.json", '{"prompt": "a"}', "a.json: it holds an object, neither a list nor COCO's captions"),
        ("a.json", json.dumps({"annotations": [{"id": 1, "bbox": []}]}), "a.json, row 1: it has no caption"),
        ("a.json", json.dumps({"annotations": [{"caption": "a"}]}), "a.json, row 1: it has no image_id"),
        ("a.yaml", "- a", "prompts are read from .txt, .csv"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_prompts(written(tmp_path, name, content))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    for path, said in ((tmp_path / "x.txt", "no file"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=said):
            read_prompts(path)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.parquet", b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        read_prompts(path)


def test_rows_of_parquet_are_read_as_those_of_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"caption": "a", "key": "1", "seed": 3.0}, {"caption": "b", "key": None, "seed": float("nan")}]
    module, parent = ModuleType("pyarrow.parquet"), ModuleType("pyarrow")
    vars(module)["read_table"] = lambda path: SimpleNamespace(to_pylist=lambda: rows)
    vars(parent)["parquet"] = module
    monkeypatch.setitem(sys.modules, "pyarrow", parent)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    path = written(tmp_path, "a.parquet", b"PAR1")
    assert read_prompts(path) == [PromptRow("a", "1", 3), PromptRow("b")]


def test_fifty_thousand_lines_are_read_in_seconds(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "".join(f'{{"caption": "thing {i}", "id": {i}}}\n' for i in range(50_000)))
    start = time.process_time()
    assert len(read_prompts(path)) == 50_000
    assert time.process_time() - start < 3  # takes 0.4 s
