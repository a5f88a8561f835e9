"""Load, memory, fuzzing and faults of ``cowest serve``: ``python -m benchmarks.serving --help``."""
