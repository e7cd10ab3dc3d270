"""Canonical rows, one per image, and where they come from: hub datasets, REFER folders, saved rows."""
