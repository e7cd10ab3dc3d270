"""Referring expressions for photographs, written from COCO annotations."""
