"""Seconds of steps and of runs, measured in turn with one harness."""
