"""Parameter updates around ``optimizer.step()``: drift, long steps and random subsets."""
