"""Partial backward: a fast step skips the backward pass below the live parameters."""
