"""The order of names with numbers in them that people expect."""

import re


def by_number(name: str) -> list[tuple[int, str]]:
    """A key for sorting: it puts `frame2` before `frame10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
