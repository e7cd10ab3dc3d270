"""The synthetic benchmark: scenes of shapes with exact masks and expressions in graded levels."""

from .dataset import shapes_dataset, shapes_row


__all__ = ["shapes_dataset", "shapes_row"]
