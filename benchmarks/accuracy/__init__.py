"""Accuracy at equal steps and at equal time, against other ways to reduce the cost of training."""
