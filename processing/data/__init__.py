"""Canonical rows, one per image, and their sources: Hub datasets, REFER folders and saved rows."""
