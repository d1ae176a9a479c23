"""Averaged copies: train copies of one network with different step sizes and average them."""
