"""Accuracy at equal time: every contender is planned for a budget, with its own schedule to the end."""
