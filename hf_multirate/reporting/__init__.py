"""Report on a run after training, and compare it with a baseline of the same data and seed."""

from hf_multirate.reporting.report import report


__all__ = ["report"]
