"""cowest: pair a small trainable model with a black-box strong one, and tune it until it helps most."""

__version__ = "0.1.0"
