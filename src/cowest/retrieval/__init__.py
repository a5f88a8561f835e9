"""Retrieval: a task's documents, and two ways to search them (BM25, dense)."""
