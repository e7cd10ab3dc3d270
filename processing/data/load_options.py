"""What every source of a referring dataset is asked for alike."""

from dataclasses import dataclass

from .canonical_rows import BadRows


@dataclass(frozen=True)
class LoadOptions:
    """
    Options of [`~processing.data.referring_datasets.load_referring_dataset`], where they are described.

    Raises:
        ValueError: for an unknown `on_bad_row`.
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
        """A report of the rows of a dataset that cannot be used, with the policy of these options."""
        return BadRows(name, self.on_bad_row)


def same_split(one: str, other: str) -> bool:
    """Whether two names mean the same split; `val` and `validation` do."""
    return {"validation": "val"}.get(one, one) == {"validation": "val"}.get(other, other)
