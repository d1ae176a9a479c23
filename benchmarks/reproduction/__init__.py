"""What the paper measured and proved, measured again."""
