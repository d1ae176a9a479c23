"""Automatic training: the user names a budget, and what is measured while training decides on the periods."""

from hf_multirate.config.budget import Budget


__all__ = ["Budget"]
