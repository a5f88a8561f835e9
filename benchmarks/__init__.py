"""Performance claims, one command each; run them all with ``python -m benchmarks``."""
