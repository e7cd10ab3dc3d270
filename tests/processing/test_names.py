"""Names that do not exist are answered with the nearest."""

from __future__ import annotations

import pytest
from transformers import BertConfig, SwinConfig

from modeling_jmceln import JMCELNConfig
from processing.names import check_arguments, check_config_fields, nearest_name


def test_nearest_name() -> None:
    assert nearest_name("learning_rat", {"learning_rate", "seed"}) == "; did you mean `learning_rate`?"
    assert nearest_name("zzz", {"learning_rate"}, otherwise="; see above.") == "; see above."


def test_fields_that_a_configuration_has_are_taken() -> None:
    saved = JMCELNConfig(backbone_config=SwinConfig(out_features=["stage2", "stage3", "stage4"])).to_dict()
    check_config_fields(saved, JMCELNConfig(), "model_config")
    # By another name for a field, and fields that every configuration has.
    check_config_fields({"hidden_size": 3, "initializer_range": 0.1}, SwinConfig(), "backbone_config")
    check_config_fields({"num_labels": 3, "output_attentions": True}, BertConfig(), "text_config")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_stage": 4}, r"`model_config\.num_stage`; did you mean `num_stages`\?"),
        (
            {"backbone_config": {"model_type": "swin", "window": 7}},
            r"`model_config\.backbone_config\.window`; did you mean `window_size`\?",
        ),
        ({"qqqq": 1}, r"There is no field `model_config\.qqqq`\."),
    ],
)
def test_others_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config_fields(fields, JMCELNConfig(), "model_config")


def test_arguments_are_checked_without_a_call() -> None:
    def function(first, second=2, **kwargs):
        raise AssertionError

    check_arguments(function, {"first": 1, "anything": 2}, "it")
    with pytest.raises(ValueError, match="it needs `first`"):
        check_arguments(function, {"second": 1}, "it")
    with pytest.raises(ValueError, match=r"it takes no `frist`; did you mean `first`\?"):
        check_arguments(lambda first: first, {"frist": 1}, "it")
