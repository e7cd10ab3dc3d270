"""`ModelTesterMixin` and `ConfigTester`, the common suites of transformers, on JMCELN."""

from __future__ import annotations

import tempfile
import unittest
from typing import Any

import torch
from parameterized import parameterized

from modeling_jmceln import JMCELNConfig, JMCELNModel
from tests.compat import import_suite
from tests.tiny import tiny_config
from tests.transformers_suites.skips import leave_out


suite = import_suite("test_modeling_common")
configuration_suite = import_suite("test_configuration_common")


class JMCELNModelTester:
    """What the suite asks of a model's own tester: a small configuration, inputs, and the sizes it may expect."""

    is_training = True
    batch_size = 3
    image_size = 64
    text_length = 7

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent
        config = self.get_config()
        self.num_attention_heads = config.num_attention_heads
        self.hidden_size = config.hidden_size
        # `attentions` and `hidden_states` are those of the cascade, over the working map at stride 16.
        self.num_hidden_layers = config.num_stages
        self.num_backbone_stages = len(config.backbone_config.depths)
        self.seq_length = (self.image_size // config.feature_strides[-2]) ** 2
        self.encoder_seq_length = config.num_context_tokens
        self.key_length = self.text_length + config.num_context_tokens + self.seq_length

    def get_config(self) -> JMCELNConfig:
        return tiny_config()

    def prepare_config_and_inputs_for_common(self) -> tuple[JMCELNConfig, dict[str, Any]]:
        config = self.get_config()
        shape = (self.batch_size, self.text_length)
        attention_mask = torch.ones(shape, dtype=torch.long)
        attention_mask[1:, -2:] = 0
        return config, {
            "pixel_values": suite.floats_tensor([self.batch_size, 3, self.image_size, self.image_size]),
            "input_ids": suite.ids_tensor(shape, config.text_config.vocab_size),
            "attention_mask": attention_mask,
        }


class JMCELNModelTest(suite.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (JMCELNModel,)
    additional_model_inputs = ("input_ids",)
    test_can_init_all_missing_weights_before_2023 = True
    _is_composite = True
    skip_test_image_features_output_shape = True  # said in skips.py

    def setUp(self) -> None:
        self.model_tester = JMCELNModelTester(self)

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels:
            batch_size, _, height, width = inputs["pixel_values"].shape
            labels = torch.zeros(batch_size, height, width, dtype=torch.long)
            # The first expression has no target, the others have one, with a border that is ignored.
            labels[1:, height // 4 : height // 2, width // 4 : width // 2] = 1
            labels[1:, :2] = 255
            inputs["labels"] = labels
        return inputs

    def _image_features_get_expected_num_attentions(self, model_tester: JMCELNModelTester | None = None) -> int:
        return self.model_tester.num_backbone_stages

    def test_hidden_states_output(self) -> None:
        # The suite takes one length for the queries of `attentions` and for `hidden_states`. Ours are two: context
        # tokens attend, pixels are the state.
        self.model_tester.encoder_seq_length = self.model_tester.seq_length
        super().test_hidden_states_output()

    def test_sdpa_can_dispatch_composite_models(self) -> None:
        # The suite's own looks for a `vision_model`; ours is called `backbone`.
        model = JMCELNModel(self.model_tester.get_config())
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            for implementation, requested in (("sdpa", {}), ("eager", {"attn_implementation": "eager"})):
                loaded = JMCELNModel.from_pretrained(folder, **requested)
                for part in (loaded, loaded.backbone, loaded.text_model):
                    assert part.config._attn_implementation == implementation

    @parameterized.expand(suite.TEST_EAGER_MATCHES_SDPA_INFERENCE_PARAMETERIZATION)
    def test_eager_matches_sdpa_inference(
        self,
        name: str,
        dtype: str,
        padding_side: str,
        use_attention_mask: bool,
        output_attentions: bool,
        enable_kernels: bool,
    ) -> None:
        # Rounding grows with what is rounded: our hidden states reach 12, where a step of float16 is 0.008 and one of
        # float32 1e-6. The suite makes this allowance for bfloat16 alone.
        atols = {torch.float32: 1e-5, torch.float16: 3e-2, torch.bfloat16: 1e-2}
        devices = [(device, kernels) for device in ("cpu", "cuda") for kernels in (False, True)]
        suite._test_eager_matches_sdpa_inference(
            self,
            name,
            dtype,
            padding_side,
            use_attention_mask,
            output_attentions,
            enable_kernels,
            atols={(*device, dtype): atol for device in devices for dtype, atol in atols.items()},
        )


leave_out("ModelTesterMixin", JMCELNModelTest)


class JMCELNConfigTest(unittest.TestCase):
    def setUp(self) -> None:
        self.model_tester = JMCELNModelTester(self)

    def test_config(self) -> None:
        tester = configuration_suite.ConfigTester(
            self,
            config_class=JMCELNConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads"],
            hidden_size=64,
            num_stages=2,
        )
        tester.run_common_tests()
