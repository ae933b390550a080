"""Configs with one value that no one would write: an answer in one line, soon, before anything large is built."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych.core.errors import UserError
from tests.models.latents import system
from tests.mutations import changed
from tests.pretrained import sd_models


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    sd_models.folder(folder / "sd")
    system("joint").save(folder / "ours")
    return folder


CASES: list[tuple[str, str, Any]] = [
    *(("sd/scheduler/scheduler_config.json", "_class_name", value) for value in ([], {"a": 1}, -1, None)),
    *(("sd/scheduler/scheduler_config.json", "beta_schedule", value) for value in ([1], {"a": {"b": [1]}}, True)),
    *(("sd/scheduler/scheduler_config.json", "prediction_type", value) for value in ([-1], {}, 0.5)),
    *(("sd/scheduler/scheduler_config.json", "num_train_timesteps", value) for value in (10**9, 2**70, 0, "x", 1e300)),
    *(("sd/unet/config.json", "layers_per_block", value) for value in (10**9, "x", [], {}, -1, 1e300, True)),
    *(("sd/unet/config.json", "block_out_channels", value) for value in (None, [0], [10**9] * 3, ["x"], {"a": 1}, 3)),
    *(("sd/unet/config.json", "attention_head_dim", value) for value in ("x", {}, [[1]], -1, 2**70)),
    *(("sd/unet/config.json", "cross_attention_dim", value) for value in ("x", [[]], 10**12, 1e300)),
    *(("sd/vae/config.json", "latent_channels", value) for value in ("x", 10**12, [], -1)),
    *(("sd/vae/config.json", "scaling_factor", value) for value in ("x", 1e300, [], -1, True)),
    *(("sd/text_encoder/config.json", "num_hidden_layers", value) for value in (10**9, -1, "x", [], None, 2**70)),
    *(("sd/text_encoder/config.json", "hidden_size", value) for value in (10**9, 1e300, {"a": 1}, 3)),
    *(("sd/text_encoder/config.json", "hidden_act", value) for value in ("x", [], 3)),
    *(("sd/model_index.json", "unet", value) for value in ("x", [], {"a": 1}, 3, None)),
    *(("sd/tokenizer/tokenizer_config.json", "tokenizer_class", value) for value in ([], {"a": 1}, "x", -1)),
    *(("ours/config.json", "unet.blocks", value) for value in (10**9, 2**70, "x", [], -1)),
    *(("ours/config.json", "autoencoder.blocks", value) for value in (10**9, "x", 0.5)),
    *(("ours/config.json", "schedule.steps", value) for value in (10**9, 2**70, {}, -1)),
    *(("ours/config.json", "text.network.layers", value) for value in (10**9, "x", None)),
    *(("ours/config.json", "kind", value) for value in ([], {"a": 1}, 3, "x", None)),
]


@pytest.mark.every(3)
@pytest.mark.parametrize(("file", "key", "value"), CASES, ids=[f"{f}-{k}-{str(v)[:12]}" for f, k, v in CASES])
def test_a_value_that_makes_no_sense_is_answered_in_one_line(
    there: Path, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    name, _, inner = file.partition("/")
    shutil.copytree(there / name, tmp_path / name)
    path = tmp_path / name / inner
    path.write_text(json.dumps(changed(json.loads(path.read_text()), tuple(key.split(".")), value)))
    started = time.perf_counter()
    try:
        diptych.load(tmp_path / name)
    except UserError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error) and len(str(error)) < 1500
    else:
        assert value is None or isinstance(value, bool), "no more than a default or a whole number in disguise"
    assert time.perf_counter() - started < 60
