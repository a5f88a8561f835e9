"""The guard: who answers a query, so that the whole is proven not to be worse than the better model alone."""
