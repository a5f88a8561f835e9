"""Does the guard keep its promise, and what is it worth? See :mod:`benchmarks.guard.__main__`."""
