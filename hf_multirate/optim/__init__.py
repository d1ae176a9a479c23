"""What happens around ``optimizer.step()``: drift, long steps, random subsets."""
