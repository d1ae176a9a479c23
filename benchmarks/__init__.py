"""Benchmarks of multirate training: `python -m benchmarks`, from the root of the repository."""
