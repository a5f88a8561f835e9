"""Other ways than draft and refine in which two models come to one answer (docs/interactions.md); the rows are in ``rows.py``."""
