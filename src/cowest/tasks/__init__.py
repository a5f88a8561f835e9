"""Datasets behind the ``Task`` protocol, their instructions and how answers are read from model text."""

from cowest.tasks.answers import extract_answer
from cowest.tasks.base import SimpleTask
from cowest.tasks.jsonl import JsonlTask, load_jsonl_task

__all__ = ["JsonlTask", "SimpleTask", "extract_answer", "load_jsonl_task"]
