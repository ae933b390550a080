"""Hooks that may refuse prompts and images; whatever goes wrong in them refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.models.safety_check import BROKEN, SafetyCheck


class Prompts:
    def check_prompt(self, prompt: str) -> Any:
        return {"bad": "no\nbad words", "odd": 3, "empty": "", "worse": 1 / 0 if prompt == "worse" else None}.get(
            prompt
        )


def test_a_text_refuses_and_what_fails_does(caplog: pytest.LogCaptureFixture) -> None:
    safety = SafetyCheck(Prompts())
    assert safety.refuses_prompt("good") is None
    assert safety.refuses_prompt("bad") == "no bad words"
    assert safety.refuses_prompt("empty") == "refused by the safety check"
    with caplog.at_level(logging.ERROR):
        assert safety.refuses_prompt("odd") == safety.refuses_prompt("worse") == BROKEN
    assert "int" in caplog.text and "ZeroDivisionError" in caplog.text  # in the log, not for the client
    assert safety.refuses_images([Image.new("RGB", (8, 8))]) is None and not safety.sees_images


def test_a_hook_cannot_change_an_image() -> None:
    class Check:
        @staticmethod
        def check_image(image: Image.Image) -> None:
            image.paste("red", (0, 0, 8, 8))

    image = Image.new("RGB", (8, 8))
    assert SafetyCheck(Check()).refuses_images([image]) is None and image.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        ("my_checks", "module:object"),
        ("my checks:a", "module:object"),
        ("../my_checks:a", "module:object"),
        ("no_such_module_of_checks:a", "ModuleNotFoundError"),
        ("my_checks:Missing", "AttributeError"),
        ("my_checks:Fails", "ValueError: not today"),
        ("my_checks:nothing", "has neither check_prompt nor check_image"),
        ("my_checks:Wrong", "check_image cannot be called"),
    ],
)
def test_what_is_no_check_is_named(stated: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checks(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=problem) as raised:
        SafetyCheck.load(stated)
    assert "\n" not in str(raised.value)


def write_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `my_checks` in the current folder."""
    (folder / "my_checks.py").write_text(
        "class Check:\n"
        "    def check_prompt(self, prompt):\n        return 'no apples' if 'apple' in prompt else None\n"
        "    def check_image(self, image):\n        return f'{image.width} pixels' if image.width > 8 else None\n"
        "class Fails:\n    def __init__(self):\n        raise ValueError('not\\ntoday')\n"
        "class Wrong:\n    check_image = 3\n"
        "nothing = 3\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.delitem(__import__("sys").modules, "my_checks", raising=False)


def test_it_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checks(tmp_path, monkeypatch)
    safety = SafetyCheck.load("my_checks:Check")
    assert safety.refuses_prompt("an apple") == "no apples" and not safety.previews
    images = [Image.new("RGB", (side, side)) for side in (8, 16)]
    assert safety.refuses_images(images) == "16 pixels"


def test_generate_refuses_a_prompt_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checks(tmp_path, monkeypatch)
    assert cli.main(["generate", "an apple", "--model", "no/such", "--safety", "my_checks:Check"]) == 2
    assert "the prompt 'an apple' is refused: no apples" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.png"))


def test_generate_writes_no_image_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.models import latents

    write_checks(tmp_path, monkeypatch)
    latents.system().save(tmp_path / "model")
    asked = ["generate", "a red picture", "--model", "model", "--steps", "1", "--safety", "my_checks:Check"]
    assert cli.main(asked) == 2
    assert "16 pixels" in (errors := capsys.readouterr().err) and "refused 1 of 1 images" in errors
    assert not list(tmp_path.rglob("*.png"))
