"""Builds the model and the processor from the settings of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin

from modeling_jmceln import JMCELNConfig, JMCELNModel

from .. import JMCELNImageProcessor, JMCELNProcessor
from ..pipeline_jmceln import check_finite_weights
from ..shapes.wording import shapes_vocabulary
from .arguments import ModelArguments
from .training_data import GeneratedShapes
from .word_tokenizer import build_word_tokenizer


def build_processor(arguments: ModelArguments, train_rows: Any) -> JMCELNProcessor:
    if arguments.model_name_or_path is not None:
        try:
            processor = AutoProcessor.from_pretrained(
                arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code
            )
        except OSError as error:
            raise ValueError(f"Cannot load a processor from {arguments.model_name_or_path!r}: {error}") from error
        if arguments.tokenizer is not None:
            raise ValueError("`model_name_or_path` has its own tokenizer, which its weights need: omit `tokenizer`.")
    else:
        image_processor = JMCELNImageProcessor(**image_statistics(arguments.vision_model))
        processor = JMCELNProcessor(image_processor, build_tokenizer(arguments, train_rows))
    if arguments.image_size is not None:
        processor.image_processor.size = {"height": arguments.image_size, "width": arguments.image_size}
    if arguments.keep_aspect_ratio is not None:
        processor.image_processor.keep_aspect_ratio = arguments.keep_aspect_ratio
    if arguments.max_words is not None:
        processor.tokenizer.model_max_length = arguments.max_words
    return processor


def image_statistics(vision_model: str | None) -> dict[str, list[float]]:
    """Returns the mean and standard deviation that a pretrained vision model expects, if it has such settings."""
    if vision_model is None:
        return {}
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(vision_model)
    except OSError:  # there are no settings of an image processor
        return {}
    return {name: settings[name] for name in ("image_mean", "image_std") if settings.get(name)}


def build_tokenizer(arguments: ModelArguments, train_rows: Any) -> Any:
    if arguments.tokenizer != "words":
        return AutoTokenizer.from_pretrained(arguments.tokenizer or arguments.text_model)
    return build_word_tokenizer(training_words(train_rows))


def training_words(rows: Any) -> Iterable[str]:
    if isinstance(rows, GeneratedShapes):
        return shapes_vocabulary()
    if not isinstance(rows, datasets.Dataset):
        raise ValueError("`tokenizer: words` does not work with streams, whose words are unknown: name a `tokenizer`.")
    return {expression for row in rows.select_columns(["expressions"]) for expression in row["expressions"]}


def build_model(arguments: ModelArguments, processor: JMCELNProcessor) -> torch.nn.Module:
    attention = {} if arguments.attn_implementation is None else {"attn_implementation": arguments.attn_implementation}
    if arguments.model_name_or_path is not None:
        model = AutoModel.from_pretrained(
            arguments.model_name_or_path,
            trust_remote_code=arguments.trust_remote_code,
            dtype=torch.float32,
            **attention,
        )
        check_finite_weights(model, f"The model {arguments.model_name_or_path}")
        return renew_parts(model, arguments.new_parts, arguments.model_config) if arguments.new_parts else model
    fields: dict[str, Any] = dict(arguments.model_config)  # pyrefly: ignore[no-matching-overload] - a dict once parsed
    if arguments.text_model is not None:
        return JMCELNModel.from_vision_text_pretrained(
            arguments.vision_model, arguments.text_model, **fields, **attention
        )
    text_config = dict(fields.pop("text_config", None) or {"model_type": "bert"})
    if arguments.tokenizer == "words":
        text_config["vocab_size"] = len(processor.tokenizer)
        text_config["pad_token_id"] = processor.tokenizer.pad_token_id
    if arguments.vision_model is not None:
        text_encoder = AutoConfig.for_model(**text_config)
        return JMCELNModel.from_vision_text_pretrained(arguments.vision_model, text_encoder, **fields, **attention)
    fields["text_config"] = text_config
    return JMCELNModel._from_config(JMCELNConfig(**fields), **attention)


def renew_parts(model: torch.nn.Module, new_parts: Sequence[str], fields: Mapping[str, Any]) -> torch.nn.Module:
    """
    Builds a model like `model`, but with other `fields` of its configuration. The `new_parts` and all weights that
    `model` does not have, such as additional layers, are random.

    Raises:
        ValueError: If a part is unknown, or if the weights of another part do not fit the new configuration.
    """
    parts = [name for name, _ in model.named_children()]
    unknown = set(new_parts) - set(parts)
    if unknown:
        raise ValueError(f"`new_parts`: the model has no parts {sorted(unknown)}, choose from {parts}.")
    config = type(model.config).from_dict({**model.config.to_dict(), **fields})
    renewed = JMCELNModel._from_config(config, attn_implementation=model.config._attn_implementation)
    prefixes = tuple(f"{part}." for part in new_parts)
    kept = {name: weight for name, weight in model.state_dict().items() if not name.startswith(prefixes)}
    shapes = {name: weight.shape for name, weight in renewed.state_dict().items()}
    unfit = {name.partition(".")[0] for name, weight in kept.items() if shapes.get(name) != weight.shape}
    if unfit:
        raise ValueError(f"With {dict(fields)} the weights of {sorted(unfit)} do not fit: add them to `new_parts`.")
    renewed.load_state_dict(kept, strict=False)
    return renewed
