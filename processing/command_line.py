"""The argument parser of all `jmceln` commands."""

import argparse
from collections.abc import Sequence
from typing import Any

from .names import nearest_name


class CommandParser(argparse.ArgumentParser):
    """A parser without abbreviated options, whose error for an unknown option suggests the nearest one."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"there is no option `{unknown[0]}`{nearest_name(unknown[0].partition('=')[0], known)}")
        return parsed, unknown
