# Copyright 2026 The JMCELN package authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Finds the weights of an encoder that another release of transformers saved under other names."""

import re
from collections.abc import Collection


# Recent releases of transformers leave out this level in the names of the weights of one tower of CLIP or SigLIP.
TOWERS = ("vision_model", "text_model")
ENCODERS = ("backbone", "text_model")


def tower_key_mapping(missing: Collection[str], unexpected: Collection[str]) -> dict[str, str]:
    """
    Compares the names of the model with the names in a file that has one level less in its towers.

    Args:
        missing (`Collection[str]`): Names of the model's weights that are not in the file.
        unexpected (`Collection[str]`): Names in the file that the model does not have.

    Returns:
        `dict[str, str]`: `key_mapping` for `from_pretrained`; empty if no tower explains the differences.
    """
    mapping = {}
    for name in missing:
        for tower in TOWERS:
            prefix, found, rest = name.partition(f".{tower}.")
            if found and f"{prefix}.{rest}" in unexpected:
                mapping[rf"^{re.escape(prefix)}\.(?!{tower}\.)"] = f"{prefix}.{tower}."
    return mapping


def check_encoder_names(missing: Collection[str], unexpected: Collection[str], saved_with: str | None) -> None:
    """
    Raises:
        ValueError: If weights of an encoder are in the file under names that the model does not have. These weights
            would stay random.
    """
    for encoder in ENCODERS:
        absent, unknown = (
            sorted(name for name in names if name.startswith(f"{encoder}.")) for names in (missing, unexpected)
        )
        if absent and unknown:
            raise ValueError(
                f"{len(absent)} weights of `{encoder}` would stay random, for example {absent[0]!r}. The file has"
                f" weights with other names, for example {unknown[0]!r}. Load it with the version of transformers that"
                f" saved it, {saved_with}."
            )
