"""VGG16 and CLIP against plain PyTorch and transformers; resizing against clean-fid and pytorch-fid; files of other
networks are refused."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.core.errors import DiptychWarning, UserError
from diptych.metrics import feature_networks
from diptych.metrics.feature_files import extract
from diptych.metrics.feature_networks import ClipFeatures, InceptionFeatures, VggFeatures, open_features
from diptych.metrics.image_set import ImageSet
from diptych.metrics.kernels import cmmd
from diptych.metrics.measure import MeasureConfig, measure_images
from diptych.metrics.resizing import RESIZES
from diptych.networks import vgg
from tests.encoders.tiny_encoders import clip_folder
from tests.metrics.torchfidelity import inception_file

SIZES = [(50, 40), (31, 64), (16, 16), (7, 90)]
NARROW = 24
"""In place of 4,096, so that VGG16's hidden layers take no half gigabyte."""


def image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


@functools.cache
def vgg16() -> nn.Module:
    """VGG16 as torchvision has it, but for the width of its hidden layers."""
    layers: list[nn.Module] = []
    inputs = 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if isinstance(width, int):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
            inputs = width
        else:
            layers.append(nn.MaxPool2d(2, 2))
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    hidden = [nn.Linear(512 * 49, NARROW), nn.ReLU(), nn.Dropout(), nn.Linear(NARROW, NARROW), nn.ReLU(), nn.Dropout()]
    network.classifier = nn.Sequential(*hidden, nn.Linear(NARROW, 10))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in network.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 25
            nn.init.normal_(parameter, 0, (2 / fan) ** 0.5)
    return network.eval()


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vgg, "WIDTH", NARROW)
    monkeypatch.setattr(feature_networks, "WIDTH", NARROW)


@pytest.mark.usefixtures("narrow")
def test_vgg16_s_features_under_the_names_of_torchvision_and_timm(tmp_path: Path) -> None:
    reference: Any = vgg16()
    state = dict(reference.state_dict())
    save_file(state, tmp_path / "torchvision.safetensors")
    timm = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    for ours, theirs in (("classifier.0", "pre_logits.fc1"), ("classifier.3", "pre_logits.fc2")):
        weight = state[f"{ours}.weight"]
        timm[f"{theirs}.weight"] = weight.view(NARROW, 512, 7, 7) if ours.endswith("0") else weight[..., None, None]
        timm[f"{theirs}.bias"] = state[f"{ours}.bias"]
    save_file({**timm, "head.fc.weight": torch.zeros(3, NARROW)}, tmp_path / "timm.safetensors")
    one = image((60, 80))
    features = [VggFeatures(tmp_path / f"{name}.safetensors", "torch-bilinear") for name in ("torchvision", "timm")]
    found = features[0](features[0].prepare(one)[None])
    pixels = torch.from_numpy(np.array(one)).permute(2, 0, 1)[None] / 255
    pixels = F.interpolate(pixels, (224, 224), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        hidden = reference.features((pixels - mean) / deviation).flatten(1)
        expected = reference.classifier[:5](hidden)
    assert (expected > 0).any() and (expected == 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert features[0].weights == features[1].weights


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("classifier.3.bias"), "fc2.bias"),
        (lambda state: state.pop("classifier.0.weight"), "no hidden layers of VGG16"),
        (lambda state: state.update({"classifier.0.weight": torch.zeros(7)}), "has shape"),
        (lambda state: state.update({"features.0.weight": torch.zeros(64, 1, 3, 3)}), "has shape"),
        (lambda state: state["classifier.0.bias"].fill_(torch.nan), "NaN or Inf"),
    ],
)
def test_other_files_are_no_vgg16(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], said: str) -> None:
    state = {name: tensor.clone() for name, tensor in vgg16().state_dict().items()}
    change(state)
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        open_features("vgg16", tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inception_file(tmp_path_factory.mktemp("inception") / "weights.pth")


def without(state: dict[str, Tensor], name: str) -> None:
    del state[name]


@pytest.mark.every(3)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update({"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}), "of 1000 classes"),
        (lambda s: without(s, "Mixed_5b.branch1x1.bn.running_mean"), "Mixed_5b.branch1x1.bn.running_mean.*missing"),
        (lambda s: without(s, "Mixed_7c.branch_pool.conv.weight"), "Mixed_7c.branch_pool.conv.weight.*missing"),
        (lambda s: s.update({"Mixed_5b.branch1x1.bn.weight": torch.ones(3)}), "has shape"),
        (lambda s: s.update({"fc.weight": torch.tensor(1.0)}), "has shape"),
        (lambda s: s.update({"more.weight": torch.zeros(1)}), "unexpected key 'more.weight'"),
        (lambda s: s["Mixed_5b.branch1x1.bn.running_var"].fill_(-1), "variances below zero"),
        (lambda s: s["Mixed_5b.branch1x1.conv.weight"].fill_(torch.inf), "NaN or Inf"),
        (lambda s: s.clear() or s.update({"conv.weight": torch.zeros(2)}), "missing"),
    ],
)
def test_other_files_are_no_inception(
    inception: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    state = torch.load(inception, weights_only=True)
    change(state)
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=said) as caught:
        open_features("inception", path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_training_s_keys_of_inception_are_passed_over(inception: Path, tmp_path: Path) -> None:
    state = torch.load(inception, weights_only=True)
    more = {"AuxLogits.conv0.conv.weight": torch.zeros(2), "Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(3)}
    save_file({**state, **more}, tmp_path / "a.safetensors")
    found = InceptionFeatures(tmp_path / "a.safetensors")
    assert found.weights == InceptionFeatures(inception, allow_pickle=True).weights


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/nowhere").touch, ())


def test_pickles_need_leave_and_damaged_files_are_refused(inception: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allow-pickle"):
        open_features("inception", inception)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    (tmp_path / "cut.pth").write_bytes(inception.read_bytes()[:100_000])
    for name in ("none.pth", "empty.safetensors", "text.safetensors"):
        (tmp_path / name).write_bytes(b"" if "text" not in name else b"no weights at all")
    for path in (*tmp_path.iterdir(), tmp_path / "gone.pth"):
        with pytest.raises(UserError) as caught:
            open_features("inception", path, allow_pickle=True)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.mark.parametrize("size", SIZES)
def test_clip_s_embeddings_are_those_of_transformers(clip: Path, size: tuple[int, int]) -> None:
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    model, ours, one = CLIPModel.from_pretrained(clip), ClipFeatures(clip), image(size)
    with torch.no_grad():
        pixels = processor(one, return_tensors="pt")["pixel_values"]
        expected = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
    torch.testing.assert_close(ours(ours.prepare(one)[None]), expected, rtol=1e-4, atol=1e-5)


def test_clip_score_is_that_of_transformers(clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    captions = ["a red cat", "two dogs", "an apple on a house and many more words than it reads"]
    images = [image(size, i) for i, size in enumerate(SIZES[:3])]
    for i, one in enumerate(images):
        one.save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(captions[i])
    with pytest.warns(DiptychWarning, match="1 captions are longer"):
        result = measure_images(tmp_path, metrics=("clip-score",), weights={"clip": clip})[0]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    model = CLIPModel.from_pretrained(clip)
    tokens = CLIPTokenizer.from_pretrained(clip)(
        captions, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        output = model(**tokens, pixel_values=processor(images, return_tensors="pt")["pixel_values"])
    cosines = (output.logits_per_image / model.logit_scale.exp()).diag()
    assert result["value"] == pytest.approx(100 * float(cosines.mean()), rel=1e-4)
    assert result["error"] == pytest.approx(100 * float(cosines.std()) / 3**0.5, rel=1e-3)
    assert result["settings"]["cut_captions"] == 1
    (tmp_path / "1.txt").unlink()
    with pytest.raises(UserError, match=r"1\.png has no caption"):
        measure_images(tmp_path, metrics=("clip-score",), weights={"clip": clip})


def test_cmmd_of_folders_resizes_as_its_code_does(clip: Path, tmp_path: Path) -> None:
    sides = []
    for name, seed in (("real", 0), ("made", 50)):
        (tmp_path / name).mkdir()
        for i in range(4):
            image((40, 28), seed + i).save(tmp_path / name / f"{i}.png")
        sides.append(torch.stack([torch.from_numpy(np.array(image((40, 28), seed + i))) for i in range(4)]))
    choices: tuple[tuple[Any, str | None], ...] = (
        ("inception", None),
        ("judge", None),
        ("clip", None),
        ("clip", "clip"),
    )
    results = {
        (features, resize): measure_images(
            tmp_path / "made",
            tmp_path / "real",
            ("cmmd",),
            config=MeasureConfig(features=features, resize=resize),
            weights={"clip": clip},
        )[0]
        for features, resize in choices
    }
    model = ClipFeatures(clip)
    embedded = []
    for images in sides:
        pixels = F.interpolate(images.permute(0, 3, 1, 2).float() / 255, (16, 16), mode="bicubic")
        mean, deviation = model.clip.image_mean, model.clip.image_std
        with torch.no_grad():
            raw = model.clip.model.get_image_features(pixel_values=(pixels - mean) / deviation).pooler_output
        embedded.append(F.normalize(raw, dim=-1).double().numpy())
    expected = cmmd(embedded[1], embedded[0])
    other = results.pop(("clip", "clip"))
    assert other["features"]["resize"] == "clip" and other["value"] != pytest.approx(expected, rel=1e-3)
    for result in results.values():
        assert result["value"] == pytest.approx(expected, rel=1e-3)
        assert result["features"]["resize"] == "torch-bicubic"


def test_one_clip_serves_cmmd_and_clip_score(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    read = feature_networks.open_features
    monkeypatch.setattr("diptych.metrics.measure.open_features", lambda *how: (opened.append(how[0]), read(*how))[1])
    for i in range(2):
        image((20, 20), i).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a cat")
    results = measure_images(tmp_path, tmp_path, ("cmmd", "clip-score"), weights={"clip": clip})
    assert opened == ["clip"]
    assert [result["features"]["resize"] for result in results] == ["torch-bicubic", "clip"]
    assert results[0]["value"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer in"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "type 'bert'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "is cut short"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "not readable JSON"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}'), "above 0"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"image_mean": 3}'), "three numbers"),
    ],
)
def test_damaged_clip_folders_are_refused(tmp_path: Path, change: Callable[[Path], Any], said: str) -> None:
    folder = clip_folder(tmp_path / "clip")
    for extra in ("vocab.json", "merges.txt"):
        (folder / extra).unlink(missing_ok=True)
    change(folder)
    with pytest.raises(UserError, match=said) as caught:
        open_features("clip", folder)
    assert "\n" not in str(caught.value)


def test_a_clip_with_a_missing_weight_is_refused(tmp_path: Path) -> None:
    folder = clip_folder(tmp_path / "clip")
    state = load_file(folder / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="visual_projection"):
        open_features("clip", folder)


@pytest.mark.parametrize("size", [(640, 480), (100, 333), (299, 299), (30, 20)])
def test_resizing_is_clean_fid_s_and_pytorch_fid_s(size: tuple[int, int]) -> None:
    resize = pytest.importorskip("cleanfid.resize")
    one = image(size)
    for ours, theirs in (("clean", "clean"), ("torch-bilinear", "legacy_pytorch")):
        expected = resize.build_resizer(theirs)(np.array(one))
        found = RESIZES[ours](one, 299).numpy()
        assert found.dtype == np.float32 and np.abs(found - expected).max() < 1e-4 * 255, ours


def test_features_of_vgg16_and_clip_are_kept_apart_by_resize(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    image((40, 20)).save(tmp_path / "set" / "a.png")
    network = ClipFeatures(clip)
    rows = [
        extract(ImageSet(tmp_path / "set"), one, folder=tmp_path / "cache").values[:]
        for one in (network, network.with_resize("torch-bicubic"), network.with_resize(None))
    ]
    assert not np.array_equal(rows[0], rows[1]) and np.array_equal(rows[0], rows[2])
