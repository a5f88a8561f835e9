"""Runs that lie on disk, from their files alone: which there are, what two of them say of the same queries, what can go."""
