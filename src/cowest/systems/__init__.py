"""Systems: everything that can be evaluated or served, behind ``answer(example) -> Prediction``."""
