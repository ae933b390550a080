"""Nothing in a model's folder is run, imported or asked about, whatever its configs name."""

from __future__ import annotations

import ast
import builtins
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diptych.core.errors import UserError
from diptych.encoders.bert import Bert
from diptych.encoders.clip import ClipText
from diptych.encoders.configs import BertTextConfig, ClipTextConfig
from diptych.encoders.tokenizers import bert_tokenizer
from tests.encoders.tiny_encoders import PROMPTS, bert_folder
from tests.pretrained import sd_models

SOURCE = Path(__file__).parent.parent.parent / "src" / "diptych"
TRAP = "raise SystemExit(open('ran', 'w').write('ran'))\n"


def test_no_call_into_transformers_may_run_code_of_a_model() -> None:
    calls = 0
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            where = f"{path.relative_to(SOURCE)}:{node.lineno}: {name}"
            assert getattr(node.func, "id", "") not in ("eval", "exec", "__import__", "pipeline"), where
            if isinstance(node.func, ast.Attribute) and name in ("load", "loads", "Unpickler", "hub"):
                owner = getattr(node.func.value, "id", "")
                if owner == "yaml":
                    loaders = set(re.findall(r"\w*Loader", " ".join(map(ast.unparse, node.args[1:]))))
                    assert loaders and loaders <= {"SafeLoader", "CSafeLoader"}, where
                    continue
                if path.name != "worker.py":  # which reads what its parent process wrote into its memory
                    assert owner not in ("torch", "pickle", "joblib", "dill"), where
            if name in ("from_pretrained", "get_class_from_dynamic_module"):
                given = {each.arg: each.value for each in node.keywords}
                trusted = given.get("trust_remote_code")
                assert isinstance(trusted, ast.Constant) and trusted.value is False, where
                calls += 1
            owner = node.func.value if isinstance(node.func, ast.Attribute) else node.func
            automatic = re.fullmatch(
                r"Auto(Tokenizer|Config|Processor|\w*Model\w*|Pipeline\w*)", getattr(owner, "id", "")
            )
            assert not automatic, f"{where}: choose the class, not the folder"
    assert calls, "the test looks at nothing"


def clip(folder: Path) -> Path:
    sd_models.text_encoder().save_pretrained(folder)
    sd_models.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    there = {"clip": clip(tmp_path_factory.mktemp("clip")), "bert": bert_folder(tmp_path_factory.mktemp("bert"))}
    (there["bert"] / "tokenizer.json").unlink()  # which would be read in its place
    return there


def opened(name: str, folder: Path) -> Any:
    if name == "clip":
        return ClipText(ClipTextConfig(path=str(folder), width=128)).encode(PROMPTS[:1])
    bert_tokenizer(folder)
    return Bert(BertTextConfig(path=str(folder), width=24, max_tokens=40)).encode(PROMPTS[:1])


def change(name: str, **changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    return apply


CODE: list[tuple[Callable[[Path], None], str]] = [
    (change("tokenizer_config.json", auto_map={"AutoTokenizer": ["trap.Trap", None]}), "auto_map asks for code"),
    (change("tokenizer_config.json", auto_map={"AutoTokenizer": "owner/name--trap.Trap"}), "auto_map asks for code"),
    (change("tokenizer_config.json", tokenizer_class="Trap"), "tokenizer_class 'Trap' is none"),
    (change("tokenizer_config.json", tokenizer_class=["Trap"]), "tokenizer_class"),
    (change("config.json", auto_map={"AutoModel": "trap.Trap"}), "auto_map asks for code"),
    (change("config.json", model_type="trap"), "model of type 'trap'"),
    (change("config.json", is_decoder=True), "is_decoder|hidden"),
    (change("config.json", _attn_implementation="owner/kernels", attn_implementation="owner/kernels"), ""),
    (change("config.json", quantization_config={"quant_method": "owner/name"}, dtype="trap", torch_dtype="trap"), ""),
    (lambda folder: (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}") and None, ""),
    (change("tokenizer_config.json", chat_template="{{ cycler.__init__.__globals__.os.system('touch ran') }}"), ""),
]
"""What a folder may hold, and what is said of it; nothing where the folder is read without."""


@pytest.mark.parametrize("name", ["clip", "bert"])
@pytest.mark.parametrize(("spoil", "says"), CODE)
def test_code_of_a_folder_is_refused_or_left_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folders: dict[str, Path],
    name: str,
    spoil: Callable[[Path], None],
    says: str,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in folders[name].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for trap in ("trap.py", "__init__.py", "tokenization_trap.py", "modeling_trap.py"):
        (folder / trap).write_text(TRAP)
    spoil(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked"))
    if says:
        with pytest.raises(UserError, match=says) as caught:
            opened(name, folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    else:
        opened(name, folder)
    assert not (folder / "ran").exists() and "trap" not in sys.modules
