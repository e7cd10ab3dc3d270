"""Loads a saved model, and refuses one whose weights are damaged or incomplete."""

from typing import Any

from safetensors import SafetensorError

from .pipeline_jmceln import check_finite_weights


def load_whole_model(model_class: Any, name: str, **options: Any) -> Any:
    """
    Loads a saved model in evaluation mode.

    `from_pretrained` initializes weights that the file lacks at random, and only warns: that is right for training,
    and wrong for answers and scores.

    Args:
        model_class: A model class of transformers, or `AutoModel`.
        name (`str`): Folder or Hub id of the model.
        options: Other arguments of `from_pretrained`.

    Raises:
        ValueError: If the file of weights is damaged, lacks weights of the model, or has weights that are NaN or
            infinite.
    """
    try:
        model, loading = model_class.from_pretrained(name, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights of the model {name!r} are damaged: {error}. Copy them anew.") from error
    # Not every release of transformers saves integers, such as Swin's positions in a window: they are computed.
    learned = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    missing = sorted(learned.intersection(loading["missing_keys"]))
    if missing:
        raise ValueError(
            f"The weights of the model {name!r} lack {len(missing)} tensors, such as `{missing[0]}`, which would be"
            " random: its file is damaged, or its `config.json` is not of these weights."
        )
    check_finite_weights(model, f"The model {name}")
    return model.eval()
