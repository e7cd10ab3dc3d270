"""Names that a user may set, and what to say of those that do not exist."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig


def nearest_name(name: str, names: Iterable[str], otherwise: str = ".") -> str:
    """The end of a sentence about a name that is not among `names`: a question that names the nearest, if any is."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean `{near[0]}`?" if near else otherwise


def check_config_fields(fields: Mapping[str, Any], defaults: PretrainedConfig, name: str) -> None:
    """
    Refuse fields that a configuration does not have; it would take them as they are and save them.

    Args:
        fields (`Mapping`):
            Fields to set. Those of a configuration within, such as `text_config`, are checked as well where they name
            its `model_type`.
        defaults (`PretrainedConfig`):
            A configuration of the class that takes them.
        name (`str`):
            What to call the fields in an error.

    Raises:
        ValueError: for an unknown field, with the nearest name.
    """
    known = {*defaults.to_dict(), *vars(defaults), *defaults.attribute_map}
    for field, value in fields.items():
        # Some are properties, such as `num_labels`.
        if field not in known and not hasattr(defaults, field):
            raise ValueError(f"There is no field `{name}.{field}`{nearest_name(field, known)}")
        if isinstance(value, Mapping) and value.get("model_type") in CONFIG_MAPPING:
            check_config_fields(value, CONFIG_MAPPING[value["model_type"]](), f"{name}.{field}")


def check_arguments(function: Callable, arguments: Mapping[str, Any], name: str) -> None:
    """
    Refuse arguments that a function does not take, and the lack of those that it needs, before it is called.

    Args:
        function (`Callable`): What is to be called with `arguments`.
        arguments (`Mapping`): Arguments by name.
        name (`str`): What to call the arguments in an error.

    Raises:
        ValueError: for an unknown argument, with the nearest name; for one that is missing.
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
