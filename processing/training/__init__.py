"""What `scripts/train.py` trains with, for use in other training code as well."""
