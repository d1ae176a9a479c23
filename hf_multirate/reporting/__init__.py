"""Proof afterwards: a page on a run, or on a run and plain training of the same data and seed."""

from hf_multirate.reporting.report import report


__all__ = ["report"]
