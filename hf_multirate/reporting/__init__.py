"""Reports: records of runs, and a page that compares a run with a baseline of the same data and seed."""

from hf_multirate.reporting.report import report


__all__ = ["report"]
