"""An Inspect task over the queries of a run (``queries.py export``). The served collaboration puts its own frames around a query.

inspect eval inspect_task.py --model openai-api/cowest/lab.medicine -T queries=queries.jsonl
"""

from __future__ import annotations

from inspect_ai import Task, task
from inspect_ai.dataset import json_dataset
from inspect_ai.scorer import pattern
from inspect_ai.solver import generate


@task
def cowest_queries(queries: str = "queries.jsonl") -> Task:
    """Right where the answer after ``Answer:`` is the target."""
    return Task(dataset=json_dataset(queries), solver=generate(), scorer=pattern(r"Answer:\s*(\w+)"))
