# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""JMCELN for referring image segmentation. Importing this package registers it with `AutoConfig` and `AutoModel`."""

from transformers import AutoConfig, AutoModel

from .configuration_jmceln import JMCELNConfig
from .modeling_jmceln import (
    JMCELNForReferringSegmentation,
    JMCELNImageFeatures,
    JMCELNModel,
    JMCELNOutput,
    JMCELNPreTrainedModel,
    JMCELNTextFeatures,
)


__version__ = "0.1.0"

AutoConfig.register(JMCELNConfig.model_type, JMCELNConfig, exist_ok=True)
AutoModel.register(JMCELNConfig, JMCELNModel, exist_ok=True)

__all__ = [
    "JMCELNConfig",
    "JMCELNForReferringSegmentation",
    "JMCELNImageFeatures",
    "JMCELNModel",
    "JMCELNOutput",
    "JMCELNPreTrainedModel",
    "JMCELNTextFeatures",
]
