"""The synthetic benchmark: scenes of shapes with exact masks and expressions at several levels of difficulty."""

from .dataset import shapes_dataset, shapes_row


__all__ = ["shapes_dataset", "shapes_row"]
