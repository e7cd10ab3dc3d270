"""Your own data: reads folders of photos, masks and texts, checks them, and fine-tunes a model on them."""
