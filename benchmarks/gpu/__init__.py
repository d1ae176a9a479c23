"""Speed, memory and correctness on one GPU: `python -m benchmarks gpu`."""
