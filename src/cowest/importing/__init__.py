"""Data of any common form -> the JSONL files of a task and a recipe: ``cowest import``."""
