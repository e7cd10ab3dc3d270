"""Referring expressions for photos, generated from COCO annotations."""
