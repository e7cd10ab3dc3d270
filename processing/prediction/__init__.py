"""Predictions for many images: reading the requests, and writing the results in several formats."""
