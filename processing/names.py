"""Checks of names that users set, with suggestions for unknown ones."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig


def nearest_name(name: str, names: Iterable[str], otherwise: str = ".") -> str:
    """Returns a question that suggests the nearest of `names`, or `otherwise` if none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean `{near[0]}`?" if near else otherwise


def check_config_fields(fields: Mapping[str, Any], defaults: PretrainedConfig, name: str) -> None:
    """
    Checks that a configuration has all of the given fields. Otherwise, it would accept and save unknown ones.

    Args:
        fields (`Mapping`):
            Fields to set. The fields of a nested configuration, such as `text_config`, are checked too if they contain
            its `model_type`.
        defaults (`PretrainedConfig`):
            A configuration of the same class.
        name (`str`):
            Name of the fields in error messages.

    Raises:
        ValueError: If a field is unknown. The message suggests the nearest name.
    """
    known = {*defaults.to_dict(), *vars(defaults), *defaults.attribute_map}
    for field, value in fields.items():
        # Some fields are properties, such as `num_labels`.
        if field not in known and not hasattr(defaults, field):
            raise ValueError(f"There is no field `{name}.{field}`{nearest_name(field, known)}")
        if isinstance(value, Mapping) and value.get("model_type") in CONFIG_MAPPING:
            check_config_fields(value, CONFIG_MAPPING[value["model_type"]](), f"{name}.{field}")


def check_arguments(function: Callable, arguments: Mapping[str, Any], name: str) -> None:
    """
    Checks that a function accepts the given arguments and that none is missing, before it is called.

    Args:
        function (`Callable`): The function to call with `arguments`.
        arguments (`Mapping`): Arguments by name.
        name (`str`): Name of the function in error messages.

    Raises:
        ValueError: If an argument is unknown (the message suggests the nearest name) or missing.
    """
    parameters = inspect.signature(function).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD}
    takes_any = len(named) < len(parameters)
    for argument in arguments:
        if argument not in named and not takes_any:
            raise ValueError(f"{name} takes no `{argument}`{nearest_name(argument, named)}")
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind != parameter.VAR_KEYWORD
        and parameter.name not in arguments
    ]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(f'`{argument}`' for argument in missing)}.")
