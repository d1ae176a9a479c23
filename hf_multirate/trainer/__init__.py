"""Multirate training in the Trainer of transformers."""
