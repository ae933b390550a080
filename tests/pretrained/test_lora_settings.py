"""LoRAs of PEFT and of other programs: what is stated beside the matrices is followed, or refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diptych.core.errors import UserError
from diptych.pretrained.lora_files import LoRA
from diptych.pretrained.stable_diffusion.state_dict_keys import compvis_unet, diffusers_unet
from tests.networks.reference import relative_error
from tests.pretrained import sd_models

KEY = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import diptych

    return diptych.load(sd_models.folder(tmp_path_factory.mktemp("sd")))


@pytest.mark.every(2)
@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 16},
        {"lora_alpha": 16, "use_rslora": True},
        {"alpha_pattern": {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 9}, "rank_pattern": {"to_k": 2}},
        {"target_modules": ["to_k", "conv1", "conv_in", "proj_in"], "init_lora_weights": "gaussian"},
    ],
)
def test_the_folder_of_peft_gives_its_numbers(tmp_path: Path, model: Any, changes: dict[str, Any]) -> None:
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(**{"r": 4, "target_modules": ["to_q", "to_k"], **changes})
    theirs: Any = peft.get_peft_model(sd_models.unet(), config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path)
    x, times, context = torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.randn(1, 5, 128)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        lora = LoRA.open(path)
        lora.attach(model)
        with torch.no_grad():
            assert relative_error(model.unet(x, times, context=context), theirs(x, times, context).sample) < 1e-5
        lora.remove(model)


def adapter(folder: Path, **values: Any) -> Path:
    tensors = {f"{KEY}to_q.lora_A.weight": torch.ones(4, 64), f"{KEY}to_q.lora_B.weight": torch.ones(64, 4)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **values}))
    return folder


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"peft_type": "LOHA"}, "another method than LoRA, 'LoHa'"),
        ({"peft_type": "LOKR"}, "'LoKr'"),
        ({"peft_type": ["LORA"]}, "another method"),
        ({"use_dora": True}, r"use_dora = True \(DoRA\)"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["conv_in"]}, "modules_to_save"),
        ({"something_new": 3}, "something_new = 3"),
        ({"r": 8}, "states the rank 8 .* have rank 4"),
        ({"rank_pattern": {"to_q": 2}}, "states the rank 2"),
        *(({"lora_alpha": bad}, "has the alpha") for bad in ("x", -1, 0, True, [], 1e300, {"a": 1})),
        *(({"alpha_pattern": bad}, "no patterns of layers as alpha_pattern") for bad in (3, "x", [1], {"(": 1})),
        ({"alpha_pattern": {"(.*)*x": 1}}, "no patterns of layers"),
        ({"alpha_pattern": {"a*" * 40 + "b": 1}}, "no patterns of layers"),
        ({"alpha_pattern": {"to_q": "x"}}, "has the alpha 'x'"),
    ],
)
def test_what_peft_states_and_we_do_not_follow(tmp_path: Path, values: dict[str, Any], says: str) -> None:
    started = time.perf_counter()
    with pytest.raises(UserError, match=says) as caught:
        LoRA.open(adapter(tmp_path, **values))
    assert "adapter_config.json" in str(caught.value) and "\n" not in str(caught.value)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("text", ["", "[", "[1]", "{", '"x"', "[" * 99999])
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    folder = adapter(tmp_path)
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        LoRA.open(folder)


def test_a_folder_without_a_lora_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pytorch_lora_weights\.safetensors or adapter_model\.safetensors"):
        LoRA.open(tmp_path)


def test_names_of_other_programs_are_for_the_same_layers(tmp_path: Path, model: Any) -> None:
    """ComfyUI has CompVis' names, OneTrainer diffusers'; kohya's are what the others are compared with."""
    compvis, theirs = compvis_unet(model.unet.config, ""), diffusers_unet(model.unet.config)
    name = next(key for key in theirs if key.endswith("cross_attention.key.weight"))
    inner, place = (layout[name].key.removesuffix(".weight") for layout in (compvis, theirs))
    text = "text_model.encoder.layers.1.self_attn.q_proj"
    pairs = {
        "kohya": (f"lora_unet_{place.replace('.', '_')}", f"lora_te_{text.replace('.', '_')}", "lora_down", "lora_up"),
        "ComfyUI": (f"diffusion_model.{inner}", f"text_encoders.clip_l.transformer.{text}", "lora_A", "lora_B"),
        "OneTrainer": (f"lora_unet.{place}", f"lora_te.{text}", "lora_down", "lora_up"),
        "PEFT": (f"base_model.model.{place}", f"base_model.model.{text}", "lora_A", "lora_B"),
    }
    found = {}
    for program, (layer, words, down, up) in pairs.items():
        rows, columns = model.unet.state_dict()[name].shape
        tensors = {f"{layer}.{down}.weight": torch.ones(2, columns), f"{layer}.{up}.weight": torch.ones(rows, 2)}
        tensors |= {f"{words}.{down}.weight": torch.ones(2, 128), f"{words}.{up}.weight": torch.ones(128, 2)}
        save_file(tensors, tmp_path / "x.safetensors")
        found[program] = {*map(id, LoRA.open(tmp_path / "x.safetensors").changes(model))}
    assert all(layers == found["kohya"] and len(layers) == 2 for layers in found.values())
