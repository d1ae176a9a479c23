"""Which parameter of a model is where, and what a step of it costs."""
