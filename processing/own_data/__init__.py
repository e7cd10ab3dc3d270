"""Data of one's own: photos, masks and text as people have them, their check, and a fine-tuning in one command."""
