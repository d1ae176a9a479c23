"""Averaged copies of one network on several time scales."""
