"""Options that apply to every source of a referring dataset."""

from dataclasses import dataclass

from .canonical_rows import BadRows


@dataclass(frozen=True)
class LoadOptions:
    """
    Options that are described in [`~processing.data.referring_datasets.load_referring_dataset`].

    Raises:
        ValueError: If `on_bad_row` is unknown.
    """

    split: str
    dataset_name: str | None = None
    excluded: frozenset[str] = frozenset()
    streaming: bool = False
    on_bad_row: str = "skip"
    check_images: bool = True

    def __post_init__(self):
        self.bad_rows("")

    def bad_rows(self, name: str) -> BadRows:
        """Creates a report of bad rows with the policy of these options."""
        return BadRows(name, self.on_bad_row)


def same_split(one: str, other: str) -> bool:
    """Whether two names mean the same split, as `val` and `validation` do."""
    return {"validation": "val"}.get(one, one) == {"validation": "val"}.get(other, other)
