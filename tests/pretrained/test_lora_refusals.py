"""LoRA files that are damaged, of another method or of another model are refused, and the model stays as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import diptych
from diptych.core.errors import UserError
from diptych.networks.lora import adapted
from diptych.pretrained.lora_files import LoRA, attach_files
from tests.pretrained import sd_models
from tests.pretrained.lora_files import changes, kohya, weights, written

pytest.importorskip("diffusers")

Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_q"
K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
REFUSED = {
    "DoRA": (lambda t: t.update({f"{Q}.dora_scale": torch.ones(64, 1)}), f"'{Q}.dora_scale' is of .* DoRA"),
    "LoHa": (lambda t: t.update({f"{Q}.hada_w1_a": torch.ones(64, 1)}), "hada_w1_a' is of .* LoHa"),
    "LoKr": (lambda t: t.update({f"{Q}.lokr_w1": torch.ones(64, 1)}), "lokr_w1' is of .* LoKr"),
    "Tucker": (lambda t: t.update({f"{Q}.lora_mid.weight": torch.ones(4, 4, 3, 3)}), "lora_mid.weight' .* Tucker"),
    "whole weights": (lambda t: t.update({f"{Q}.diff": torch.ones(64)}), "diff' .* changes norms, biases or whole"),
    "no LoRA": (lambda t: t.update({"conv_in.weight": torch.ones(4)}), "'conv_in.weight' is no part of a LoRA"),
    "NaN": (lambda t: t[f"{Q}.lora_up.weight"].fill_(float("nan")), f"'{Q}.lora_up.weight' holds NaN"),
    "half a pair": (lambda t: t.pop(f"{Q}.lora_up.weight"), f"'{Q}.lora_down.weight' is there, .* up matrix"),
    "alpha alone": (
        lambda t: [t.pop(f"{Q}.lora_{part}.weight") for part in ("up", "down")],
        f"'{Q}.alpha' is there, .* down matrix is missing",
    ),
    "ranks": (
        lambda t: t.update({f"{Q}.lora_up.weight": torch.ones(64, 9)}),
        f"'{Q}.lora_down.weight' has rank ., but '{Q}.lora_up.weight' rank 9",
    ),
    "alpha": (lambda t: t.update({f"{Q}.alpha": torch.tensor(0.0)}), f"'{Q}.alpha' must be one positive number"),
    "whole numbers": (
        lambda t: t.update({f"{Q}.lora_up.weight": torch.ones(64, 2, dtype=torch.int32)}),
        "'.*lora_up.weight' is no matrix or kernel",
    ),
    "a vector": (lambda t: t.update({f"{Q}.lora_up.weight": torch.ones(64)}), "lora_up.weight' is no matrix or kernel"),
    "another layer's size": (
        lambda t: t.update({f"{Q}.lora_up.weight": torch.ones(63, len(t[f"{Q}.lora_down.weight"]))}),
        f"'{Q}.lora_down.weight' and its partner .*another size; the model's has weights .64, 64.",
    ),
    "2.x": (
        lambda t: t.update({f"{K}.lora_down.weight": torch.ones(len(t[f"{K}.lora_down.weight"]), 1024)}),
        "another size, as in Stable Diffusion 2.x; the model's has weights .64, 128.",
    ),
    "SDXL's text": (lambda t: rename(t, Q, "lora_te2_text_model_x"), "'lora_te2_text_model_x.lora_.*belongs to SDXL"),
    "SDXL": (lambda t: rename(t, Q, Q.replace("blocks_0_attn2", "blocks_7_attn2")), "SDXL, whose transformers"),
    "Flux": (lambda t: rename(t, Q, "lora_unet_double_blocks_0_x"), "belongs to a diffusion transformer"),
    "another depth": (lambda t: rename(t, Q, "lora_unet_down_blocks_7_x"), "a layer that this model lacks .1 such"),
    "twice": (
        lambda t: t.update({f"unet.conv_in.lora_{part}.weight": t[f"lora_unet_conv_in.lora_{old}.weight"]
                            for part, old in (("A", "down"), ("B", "up"))}),
        "'unet.conv_in.lora_A.weight' is for a layer that another key is for",
    ),
    "nothing": (lambda t: t.clear(), "holds no tensors, and so no LoRA"),
}  # fmt: skip


def rename(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for key in [key for key in tensors if key.startswith(f"{old}.")]:
        tensors[key.replace(old, new)] = tensors.pop(key)


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> Any:
    return diptych.load(sd_models.folder(tmp_path_factory.mktemp("sd") / "model"), "cpu")


@pytest.fixture
def model(opened) -> Any:
    return copy.deepcopy(opened)


@pytest.fixture(scope="module")
def few() -> dict[str, Tensor]:
    """A good file of few layers."""
    return kohya(changes(sd_models.pipeline(), lambda name: name.startswith(("mid_block.attentions", "conv_in"))))


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(what: str, few, opened, tmp_path: Path) -> None:
    change, message = REFUSED[what]
    tensors = {key: tensor.clone() for key, tensor in few.items()}
    change(tensors)
    good, path = written(tmp_path, few, "good.safetensors"), written(tmp_path, tensors)
    before = weights(opened)
    for apply in (
        lambda: LoRA.open(path).merge(opened),
        lambda: LoRA.open(path).attach(opened),
        lambda: attach_files(opened, [good, path]),
    ):
        with pytest.raises(UserError, match=message) as caught:
            apply()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(opened).items())
    assert not adapted(opened.unet, opened.text.model)


def test_files_that_are_none(few, model, tmp_path: Path) -> None:
    path = written(tmp_path, few)
    (tmp_path / "short.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"short.safetensors is (cut short|a damaged)"):
        LoRA.open(tmp_path / "short.safetensors")
    with pytest.raises(UserError, match=r"there is no file .*none.safetensors"):
        LoRA.open(tmp_path / "none.safetensors")
    torch.save(load_file(path), tmp_path / "lora.bin")
    with pytest.raises(UserError, match=r"lora.bin is a pickle"):
        LoRA.open(tmp_path / "lora.bin")
    LoRA.open(tmp_path / "lora.bin", allow_pickle=True).attach(model)
    (tmp_path / "lora.bin").rename(tmp_path / "pickle.safetensors")
    with pytest.raises(UserError, match=r"pickle.safetensors is not a safetensors file"):
        LoRA.open(tmp_path / "pickle.safetensors", allow_pickle=True)
    for header, message in (
        ("[", "is no JSON object"),
        ("[3]", "is no JSON object"),
        ('{"unet.alpha_pattern": {"(": 3}}', "has no patterns of layers"),
        ('{"unet.alpha_pattern": 3}', "has no patterns of layers"),
        ('{"unet.lora_alpha": "big"}', "has the alpha 'big' for unet.conv_in"),
    ):
        pair = {
            "unet.conv_in.lora_A.weight": torch.ones(1, 4, 3, 3),
            "unet.conv_in.lora_B.weight": torch.ones(4, 1, 1, 1),
        }
        with pytest.raises(UserError, match=f"lora_adapter_metadata in its header {message}"):
            LoRA.open(written(tmp_path, pair, lora_adapter_metadata=header))


def test_what_makes_no_sense(few, model, tmp_path: Path) -> None:
    path = written(tmp_path, few)
    lora = LoRA.open(path)
    with pytest.raises(UserError, match="is not applied to this model"):
        lora.remove(model)
    for scale in (float("nan"), float("inf"), "strong", True):
        with pytest.raises(UserError, match="scale must be a finite number"):
            lora.attach(model, scale)  # pyright: ignore[reportArgumentType]
    for files, message in (
        ([3], "lora must be a list of files, or of pairs of a file and its scale, not 3"),
        ([(path, 1.0, 2.0)], "lora must be a list of files, or of pairs of a file and its scale, not "),
        (None, "lora must be a list of files, or of pairs of a file and its scale, not None"),
        ([path, (str(path), 0.5)], "is given twice"),
        ([(path, "strong")], "scale must be a finite number, not 'strong'"),
    ):
        with pytest.raises(UserError, match=message):
            attach_files(model, files)  # pyright: ignore[reportArgumentType]
    assert not adapted(model.unet, model.text.model)
    with pytest.raises(UserError, match="LoRA files are for latent models"):
        lora.attach(nn.Linear(2, 2))
