"""Natural sort order of names with numbers."""

import re


def by_number(name: str) -> list[tuple[int, str]]:
    """Returns a sort key that puts `frame2` before `frame10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
