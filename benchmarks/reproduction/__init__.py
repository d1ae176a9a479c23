"""The experiments of the paper, at the size of two cores or at its own."""
