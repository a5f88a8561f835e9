"""What of some passages answers a question: the sentences that share most words with the question and its answers.

Where the weak model is shown the passages, to copy all of them would teach it nothing and fill its draft: it learns to pick these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cowest.models.window import SENTENCE_END

MOST_SENTENCES = 2
MOST_CHARS = 320
"""About 80 tokens: within a draft of 160 there is room for the answer."""
_WORD = re.compile(r"\w+")
_COMMON = frozenset(
    word
    for line in (
        "a an and are as at be been by did do does for from had has have he her his how if in into is it its not of on",
        "or she that the their them they this to was were what when where which who whom why will with would",
    )
    for word in line.split()
)


def evidence(passages: str, question: str, answers: Sequence[str]) -> str | None:
    """At most two sentences of the passages, in their order and within MOST_CHARS; None where no word is shared.

    A sentence that holds an answer counts as one that shares four words more. Ties go to the earlier one.
    """
    asked, wanted = _words(question), [" ".join(_WORD.findall(a.casefold())) for a in answers]
    sentences = [s.strip() for s in SENTENCE_END.split(passages) if s.strip()]
    scored = []
    for number, sentence in enumerate(sentences):
        plain = " ".join(_WORD.findall(sentence.casefold()))
        holds = any(answer and f" {answer} " in f" {plain} " for answer in wanted)
        scored.append((len(asked & _words(sentence)) + 4 * holds, -number, sentence))
    chosen: list[tuple[int, str]] = []
    left = MOST_CHARS
    for score, order, sentence in sorted(scored, reverse=True)[:MOST_SENTENCES]:
        if score and (len(sentence) <= left or not chosen):
            chosen.append((-order, sentence if len(sentence) <= left else _cut(sentence, left)))
            left -= len(sentence) + 1
    return " ".join(sentence for _, sentence in sorted(chosen)) or None


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.casefold()) if word not in _COMMON}


def _cut(sentence: str, most: int) -> str:
    head = sentence[: most + 1].rsplit(None, 1)
    return head[0] if len(head) == 2 else sentence[:most]
