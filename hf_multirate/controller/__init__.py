"""The object that holds a model and an optimizer, and calls the parts of a step in their order."""
