"""Calibration rows of worlds whose truth is known, for the guard's tests and benchmark."""

from __future__ import annotations

import math

import numpy as np

from cowest.collaboration.guard.evidence import Answered, Evidence, Said
from cowest.types import Usage


def rows_of(
    n: int,
    seed: int,
    weak: float = 0.5,
    strong: float = 0.4,
    both: float = 0.65,
    informed: float = 2.0,
    helped: float = 0.2,
) -> list[Answered]:
    """Queries on which the models are right with about these probabilities.

    The weak model's confidence tells how likely it is to be right by ``informed`` (0: not at all), and a draft that is right or
    wrong moves what both get by ``helped``.
    """
    rng, rows = np.random.default_rng(seed), []
    used = Usage(calls=1, input_tokens=100, output_tokens=20)
    for i in range(n):
        z = float(rng.normal())
        sure = 1 / (1 + math.exp(-z))
        is_weak = rng.random() < 1 / (1 + math.exp(-(math.log(weak / (1 - weak)) + informed * z)))
        is_strong, is_both = rng.random() < strong, rng.random() < both + (helped if is_weak else -helped)
        weakly = Said(answer="A" if is_weak else "B", confidence=sure, sureness=sure, words=5)
        arms = {
            "weak": weakly,
            "strong": Said(answer="A" if is_strong else "C", words=5),
            "both": Said(answer="A" if is_both else "B", words=5),
        }
        evidence = Evidence(question_words=10, agreement=sure, draft=weakly, arms=arms)
        scores = {"weak": float(is_weak), "strong": float(is_strong), "both": float(is_both)}
        rows.append(
            Answered(
                example_id=f"q{i}",
                evidence=evidence,
                scores=scores,
                usage={"weak": Usage(), "strong": used, "both": used},
            )
        )
    return rows
