"""Processing for JMCELN: image processor, processor and pipeline. The import registers them with the Auto classes."""

import importlib
from typing import TYPE_CHECKING, Any

from transformers import AutoModel, AutoProcessor, PretrainedConfig

# The top level of transformers 5.17 has this class only where torchvision is installed, though it does not need it.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .image_processing_jmceln import JMCELNImageProcessor
from .pipeline_jmceln import ReferringImageSegmentationPipeline
from .processing_jmceln import JMCELNProcessor


if TYPE_CHECKING:
    from .evaluation.metrics import ReferringSegmentationMetric
    from .training.collator import ReferringCollator
    from .training.trainer_metrics import TrainerMetrics

    __version__: str

# These are imported when they are first used, since inference does not need their dependencies.
_LAZY = {
    "ReferringCollator": ".training.collator",
    "ReferringSegmentationMetric": ".evaluation.metrics",
    "TrainerMetrics": ".training.trainer_metrics",
    "__version__": "modeling_jmceln",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


class _RegistrationKey(PretrainedConfig):
    """
    The key under which the processors are registered.

    The Auto classes register processors by the configuration class of the model, which is in the other package. Saved
    folders contain the names of the processor classes, and transformers finds them by these names under any key.
    """


AutoImageProcessor.register(_RegistrationKey, slow_image_processor_class=JMCELNImageProcessor, exist_ok=True)
AutoProcessor.register(_RegistrationKey, JMCELNProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "referring-image-segmentation",
    pipeline_class=ReferringImageSegmentationPipeline,
    pt_model=AutoModel,
    type="multimodal",
)

__all__ = [
    "JMCELNImageProcessor",
    "JMCELNProcessor",
    "ReferringCollator",
    "ReferringImageSegmentationPipeline",
    "ReferringSegmentationMetric",
    "TrainerMetrics",
]
