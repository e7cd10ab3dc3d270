"""Predictions for many images: what to read, and in which forms to write what was found."""
