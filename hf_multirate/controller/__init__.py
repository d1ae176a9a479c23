"""The controller: attaches to a model and an optimizer and calls the parts of each step in order."""
