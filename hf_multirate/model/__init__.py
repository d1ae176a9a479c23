"""Analysis of a model: stack, blocks and rate groups of its parameters, and the predicted cost of a step."""
