"""Which encoders work, how pretrained ones are taken over, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    Dinov2Backbone,
    SiglipTextConfig,
    SwinBackbone,
    T5Config,
    TimmBackboneConfig,
)
from transformers.modeling_outputs import BackboneOutput
from transformers.utils import is_timm_available

from modeling_jmceln import JMCELNModel, vision_encoder
from modeling_jmceln.vision_encoder import run_plain_transformer
from tests.modeling_jmceln.inputs import random_inputs, random_labels


SMALL = {"hidden_size": 32, "mask_feature_size": 16, "intermediate_size": 64, "num_attention_heads": 4}
HIERARCHY = {"depths": [1, 1, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 16, "num_heads": [1, 2, 2, 4], "window_size": 4, **HIERARCHY}
WIDTHS = {"hidden_sizes": [8, 16, 24, 32], **HIERARCHY}
BACKBONES = {
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "convnext": WIDTHS,
    "convnextv2": WIDTHS,
    "resnet": {"embedding_size": 8, "layer_type": "basic", **WIDTHS},
    "pvt_v2": {"num_attention_heads": [1, 2, 2, 4], **WIDTHS},
    "dinov3_convnext": WIDTHS,
    "bit": {"embedding_size": 8, "num_groups": 2, **WIDTHS},
    "focalnet": {"embed_dim": 8, "image_size": 64, "hidden_sizes": [16, 32, 64, 64], **HIERARCHY},
}
# Their hidden states get coarser with depth, but transformers has no backbone class of them.
PYRAMIDS = {
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.1},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.3, "hidden_dim": 640},
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 40],
        "num_attention_heads": 2,
    },
    "mobilevitv2": {"width_multiplier": 0.25},
    "segformer": {"num_attention_heads": [1, 2, 2, 4], **WIDTHS},
    "poolformer": WIDTHS,
    "regnet": {"embedding_size": 8, "groups_width": 8, **WIDTHS},
    "swiftformer": {"embed_dims": [8, 16, 24, 32], **HIERARCHY},
}
LAYERS = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES_OF_16 = {"image_size": 64, "patch_size": 16, **LAYERS}
PATCHES_OF_14 = {"image_size": 70, "patch_size": 14, **LAYERS}
# Plain vision transformers, and their class and register tokens.
PLAIN = {
    "vit": (PATCHES_OF_16, 1),
    "deit": (PATCHES_OF_16, 2),
    "beit": (PATCHES_OF_16, 1),
    "vitdet": (PATCHES_OF_16, 0),
    "dinov2": (PATCHES_OF_14, 1),
    "dinov2_with_registers": (PATCHES_OF_14, 5),
    "dinov3_vit": ({"num_register_tokens": 3, **LAYERS}, 4),
    "clip_vision_model": (PATCHES_OF_16, 1),
    "siglip_vision_model": (PATCHES_OF_16, 0),
    "siglip2_vision_model": ({"patch_size": 16, **LAYERS}, 0),
}
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT_ENCODERS = {
    "bert": {"intermediate_size": 37, **SIZES},
    "roberta": {"intermediate_size": 37, **SIZES},
    "mpnet": {"intermediate_size": 37, **SIZES},
    "modernbert": {"intermediate_size": 37, "pad_token_id": 0, "global_attn_every_n_layers": 1, **SIZES},
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 37},
    "clip_text_model": {"intermediate_size": 37, "max_position_embeddings": 40, **SIZES},
}


def config_of(model_type: str, fields: dict):
    return AutoConfig.for_model(model_type, **fields)


def check_one_training_step(model: JMCELNModel) -> None:
    inputs = random_inputs(2, 2, height=70, width=100)
    outputs = model.train()(**inputs, labels=random_labels(inputs))
    assert outputs.logits.shape == (2, 2, 70, 100)
    outputs.loss.backward()
    without_gradient = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without_gradient == [], "DistributedDataParallel refuses parameters without a gradient"


@pytest.mark.parametrize("model_type", sorted(BACKBONES))
def test_backbones(model_type):
    backbone = config_of(model_type, BACKBONES[model_type])
    model = JMCELNModel.from_vision_text_pretrained(backbone, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [4, 8, 16, 32]
    check_one_training_step(model)


def test_an_encoder_without_sdpa_is_left_out_when_it_is_requested(tmp_path):
    backbone = config_of("convnext", BACKBONES["convnext"])
    text_config = config_of("bert", TEXT_ENCODERS["bert"])
    built = JMCELNModel.from_vision_text_pretrained(backbone, text_config, attn_implementation="sdpa", **SMALL)
    built.save_pretrained(tmp_path)
    for model in (built, JMCELNModel.from_pretrained(tmp_path, attn_implementation="sdpa")):
        assert model.config._attn_implementation == "sdpa"
        assert model.text_model.config._attn_implementation == "sdpa"
        assert model.backbone.config._attn_implementation == "eager"
    model = JMCELNModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.text_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("model_type", sorted(PYRAMIDS))
def test_hidden_state_pyramids(model_type):
    vision = config_of(model_type, PYRAMIDS[model_type])
    model = JMCELNModel.from_vision_text_pretrained(vision, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [4, 8, 16, 32]
    check_one_training_step(model)


@pytest.mark.parametrize("model_type", sorted(PLAIN))
def test_plain_vision_transformers(model_type):
    fields, num_prefix_tokens = PLAIN[model_type]
    vision = config_of(model_type, fields)
    model = JMCELNModel.from_vision_text_pretrained(vision, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [4, 8, 16, 32]
    assert model.config.num_prefix_tokens == num_prefix_tokens
    check_one_training_step(model)


def test_strides_of_a_plain_vision_transformer_follow_its_patches():
    vision = config_of("clip_vision_model", {**PATCHES_OF_16, "patch_size": 32})
    model = JMCELNModel.from_vision_text_pretrained(vision, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [8, 16, 32, 64]
    check_one_training_step(model)


@torch.no_grad()
def test_a_plain_transformer_keeps_the_tokens_of_its_patches():
    fields = {**PATCHES_OF_16, "out_features": ["stage2"]}
    backbone = Dinov2Backbone(config_of("dinov2", fields)).eval()
    model = JMCELNModel.from_vision_text_pretrained(backbone.config, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    model.backbone.encoder.load_state_dict(backbone.state_dict(), strict=False)
    pixel_values = torch.randn(2, 3, 96, 128)
    expected = backbone(pixel_values).feature_maps[0]
    maps = model.backbone(pixel_values).feature_maps
    torch.testing.assert_close(maps[2], expected)
    torch.testing.assert_close(maps[3], nn.functional.max_pool2d(expected, 2))
    assert [tuple(feature_map.shape) for feature_map in maps] == [
        (2, channels, 96 // stride, 128 // stride)
        for channels, stride in zip(model.backbone.channels, (4, 8, 16, 32), strict=True)
    ]


@torch.no_grad()
def test_siglip2_gets_its_patches_in_order():
    encoder = AutoModel.from_config(config_of("siglip2_vision_model", {"patch_size": 16, **LAYERS})).eval()
    image = torch.randn(3, 32, 48)
    corners = [(row, column) for row in (0, 16) for column in (0, 16, 32)]
    patches = [image[:, row : row + 16, column : column + 16].permute(1, 2, 0).flatten() for row, column in corners]
    expected = encoder(
        torch.stack(patches)[None],
        pixel_attention_mask=torch.ones(1, 6, dtype=torch.long),
        spatial_shapes=torch.tensor([[2, 3]]),
    )
    torch.testing.assert_close(run_plain_transformer(encoder, image[None]).last_hidden_state, expected[0])


@pytest.mark.parametrize("model_type", ["mobilenet_v2", "vit", "swin"])
def test_every_kind_of_encoder_comes_back_from_a_folder(model_type, tmp_path):
    fields = {"mobilenet_v2": PYRAMIDS["mobilenet_v2"], "vit": PATCHES_OF_16, "swin": WINDOWS}[model_type]
    model = JMCELNModel.from_vision_text_pretrained(
        config_of(model_type, fields), config_of("bert", TEXT_ENCODERS["bert"]), **SMALL
    )
    model.save_pretrained(tmp_path)
    loaded = JMCELNModel.from_pretrained(tmp_path).eval()
    inputs = random_inputs()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_category_heads_come_with_a_detector(tmp_path):
    vision = AutoModel.from_config(config_of("mobilenet_v2", PYRAMIDS["mobilenet_v2"])).eval()
    vision.save_pretrained(tmp_path)
    plain = JMCELNModel.from_vision_text_pretrained(tmp_path, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    index = plain.config.feature_indices[-2] + 1
    expanded = vision.layer[index].expand_1x1.convolution.out_channels
    heads = vision_encoder.JMCELNCategoryHeads([expanded, plain.config.feature_channels[-1]], num_categories=5)
    save_file(heads.state_dict(), tmp_path / vision_encoder.CATEGORY_HEADS_FILE)
    model = JMCELNModel.from_vision_text_pretrained(tmp_path, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.num_categories == 5
    assert model.backbone.channels[-2:] == [size + 5 for size in plain.backbone.channels[-2:]]
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, plain_maps = (each.backbone(pixel_values).feature_maps for each in (model, plain))
        wide = vision.layer[index].expand_1x1(plain_maps[-2])
        evidence = nn.functional.softplus(heads.heads[0](wide) + 6)
    for ours, theirs in zip(maps, plain_maps, strict=True):
        torch.testing.assert_close(ours[:, : theirs.shape[1]], theirs)
    torch.testing.assert_close(maps[-2][:, -5:], evidence)
    check_one_training_step(model)


def test_a_frozen_encoder_takes_no_gradient_memory():
    vision = config_of("mobilenet_v2", PYRAMIDS["mobilenet_v2"])
    model = JMCELNModel.from_vision_text_pretrained(vision, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    model.backbone.requires_grad_(False)
    model.text_model.requires_grad_(False)
    inputs = random_inputs(1, 1)
    assert not any(each.requires_grad for each in model.train().backbone(inputs["pixel_values"]).feature_maps)
    assert not model.text_model(inputs["input_ids"][0]).last_hidden_state.requires_grad
    model(**inputs, labels=random_labels(inputs)).loss.backward()
    assert model.text_projection.weight.grad is not None


def test_unused_parameters_are_found_and_frozen():
    vision = config_of("siglip_vision_model", PATCHES_OF_16)
    model = JMCELNModel.from_vision_text_pretrained(vision, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    # The pooling head. Before transformers 5, its names begin with `backbone.encoder.vision_model.`.
    head = {name for name, _ in model.backbone.named_parameters() if name.startswith("encoder.") and ".head." in name}
    assert head
    assert frozen == {f"backbone.{name}" for name in head}
    model.train().requires_grad_(True)
    model.backbone.eval()
    generator = torch.get_rng_state()
    states = {name: value.clone() for name, value in model.state_dict().items()}
    assert set(model.freeze_unused_parameters()) == frozen
    assert model.freeze_unused_parameters() == []
    # Nothing else has changed.
    assert model.training
    assert not model.backbone.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, states[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


class StubTimmBackbone(nn.Module):
    """What transformers makes of a timm model, without timm: five maps at strides 2 to 32, chosen by `out_indices`."""

    stage_names = ("a", "b", "c", "d", "e")

    def __init__(self, config: TimmBackboneConfig):
        super().__init__()
        self.config = config
        self.convolutions = nn.ModuleList([nn.Conv2d(3 + index, 4 + index, 3, 2, 1) for index in range(5)])
        self.convolutions[0] = nn.Conv2d(3, 4, 3, 2, 1)

    @property
    def channels(self) -> list[int]:
        return [4 + index for index in self.config.out_indices]

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> BackboneOutput:
        maps = [pixel_values]
        for convolution in self.convolutions:
            maps.append(convolution(maps[-1]))
        return BackboneOutput(feature_maps=tuple(maps[1 + index] for index in self.config.out_indices))


def test_features_of_a_timm_backbone_are_found(tmp_path, monkeypatch):
    # timm itself needs a torchvision that fits the installed torch; tried by hand with timm 1.0.31 (docs/encoders.md).
    monkeypatch.setattr(vision_encoder.AutoBackbone, "from_config", StubTimmBackbone)
    text = config_of("bert", TEXT_ENCODERS["bert"])
    config = TimmBackboneConfig(backbone="stub")
    model = JMCELNModel.from_vision_text_pretrained(config, text, **SMALL)
    assert model.config.feature_strides == [4, 8, 16, 32]
    assert model.config.backbone_config.out_indices == [1, 2, 3, 4]
    check_one_training_step(model)

    pretrained = StubTimmBackbone(config)
    config.save_pretrained(tmp_path)
    save_file(pretrained.state_dict(), tmp_path / "model.safetensors")
    model = JMCELNModel.from_vision_text_pretrained(tmp_path, text, **SMALL)
    for name, weight in pretrained.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], weight)


@pytest.mark.skipif(is_timm_available(), reason="timm is there")
def test_missing_timm_is_named():
    with pytest.raises(ImportError, match="requires the timm library"):
        JMCELNModel.from_vision_text_pretrained(
            TimmBackboneConfig(backbone="resnet18"), config_of("bert", TEXT_ENCODERS["bert"]), **SMALL
        )


@pytest.mark.parametrize("model_type", sorted(TEXT_ENCODERS))
def test_text_encoders(model_type):
    text = config_of(model_type, TEXT_ENCODERS[model_type])
    model = JMCELNModel.from_vision_text_pretrained(config_of("swin", BACKBONES["swin"]), text, **SMALL)
    check_one_training_step(model)


def test_three_feature_maps():
    backbone = config_of("resnet", {**BACKBONES["resnet"], "out_features": ["stage2", "stage3", "stage4"]})
    model = JMCELNModel.from_vision_text_pretrained(backbone, config_of("bert", TEXT_ENCODERS["bert"]), **SMALL)
    assert model.config.feature_strides == [8, 16, 32]
    check_one_training_step(model)


def test_pretrained_weights_are_copied_from_folders(tmp_path):
    vision = AutoModel.from_config(config_of("swin", WINDOWS))
    vision.save_pretrained(tmp_path / "vision")
    text = AutoModel.from_config(config_of("bert", TEXT_ENCODERS["bert"]))
    text.save_pretrained(tmp_path / "text")
    model = JMCELNModel.from_vision_text_pretrained(tmp_path / "vision", str(tmp_path / "text"), **SMALL)

    backbone = SwinBackbone.from_pretrained(
        tmp_path / "vision", out_features=["stage1", "stage2", "stage3", "stage4"]
    ).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(
            model.backbone(pixel_values).feature_maps, backbone(pixel_values).feature_maps, strict=True
        ):
            assert torch.equal(ours, theirs)
        ids = torch.randint(5, 99, (2, 6))
        assert torch.equal(model.text_model(ids).last_hidden_state, text.eval()(ids).last_hidden_state)


def test_text_tower_is_taken_out_of_clip(tmp_path):
    tower = TEXT_ENCODERS["clip_text_model"]
    vision_tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = AutoModel.from_config(config_of("clip", {"text_config": tower, "vision_config": vision_tower}))
    clip.save_pretrained(tmp_path)
    model = JMCELNModel.from_vision_text_pretrained(config_of("swin", WINDOWS), tmp_path, **SMALL)
    assert model.config.text_config.model_type == "clip_text_model"
    ours = model.text_model.get_input_embeddings().weight
    assert torch.equal(ours, clip.text_model.embeddings.token_embedding.weight)


@pytest.mark.parametrize("model_type", ["clip", "siglip", "siglip2"])
def test_vision_tower_is_taken_out_of_two_towers(model_type, tmp_path):
    tower = {"patch_size": 16, **LAYERS, **({} if model_type == "siglip2" else {"image_size": 64})}
    text_tower = {**LAYERS, "vocab_size": 99, "max_position_embeddings": 40}
    both = AutoModel.from_config(config_of(model_type, {"text_config": text_tower, "vision_config": tower}))
    both.save_pretrained(tmp_path)
    text = config_of("bert", TEXT_ENCODERS["bert"])
    model = JMCELNModel.from_vision_text_pretrained(tmp_path, text, **SMALL)
    expected = both.vision_model.state_dict()
    # Before transformers 5, a vision model holds its layers in another `vision_model`.
    ours = {name.removeprefix("vision_model."): each for name, each in model.backbone.encoder.state_dict().items()}
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize(
    ("vision", "fields", "message"),
    [
        (
            "hiera",
            {"embed_dim": 8, "num_heads": [1, 1, 2, 2], "image_size": [64, 64], **HIERARCHY},
            "not limited to one size",
        ),
        ("pvt", {"num_attention_heads": [1, 2, 2, 4], "image_size": 64, **WIDTHS}, "not limited to one size"),
        ("vit_mae", PATCHES_OF_16, "into `ViTModel`"),
        ("focalnet", {"embed_dim": 8, "image_size": 64, **HIERARCHY}, "contradict each other"),
        ("regnet", {"embedding_size": 8, "groups_width": 8, "hidden_sizes": [8], "depths": [1]}, "returns no pyramid"),
    ],
)
def test_refused_vision_encoders(vision, fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        JMCELNModel.from_vision_text_pretrained(
            config_of(vision, fields), config_of("bert", TEXT_ENCODERS["bert"]), **SMALL
        )
    assert f"`{vision}`" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (T5Config(), "decoder would be unused"),
        # Before transformers 5, `AutoConfig` does not know it either.
        (SiglipTextConfig(), "`AutoModel` has no class for `siglip_text_model`"),
    ],
    ids=["t5", "siglip_text_model"],
)
def test_refused_text_encoders(text, message):
    with pytest.raises(ValueError, match=message):
        JMCELNModel.from_vision_text_pretrained(config_of("swin", WINDOWS), text, **SMALL)


def test_where_encoders_are_loaded_from_is_passed_on(monkeypatch, tmp_path):
    AutoModel.from_config(config_of("mobilenet_v2", PYRAMIDS["mobilenet_v2"])).save_pretrained(tmp_path / "vision")
    AutoModel.from_config(config_of("bert", TEXT_ENCODERS["bert"])).save_pretrained(tmp_path / "text")
    options = {"revision": "v2", "token": "t", "cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    calls = []
    for loader in (AutoConfig, AutoModel):
        original = loader.from_pretrained

        def recorded(name, *arguments, _original=original, **kwargs):
            calls.append({key: value for key, value in kwargs.items() if key in options})
            return _original(name, *arguments, **kwargs)

        monkeypatch.setattr(loader, "from_pretrained", recorded)
    JMCELNModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text", **options, **SMALL)
    assert len(calls) >= 4
    assert all(call == options for call in calls[:4])
