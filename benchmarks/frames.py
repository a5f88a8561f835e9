"""Which frames serve a strong model? Candidates for a recipe's ``prompts:``, asked side by side on its last training questions.

    python -m benchmarks.frames RECIPE --endpoint http://127.0.0.1:8300/v1 --model m
    python -m benchmarks.frames RECIPE --endpoint http://127.0.0.1:8300/v1 --model m --drafts runs/x/drafts.jsonl

Without drafts the strong model is asked alone. Drafts come from a run with ``draft.held_out: true``, whose weak model has not
learned these questions' answers. Never validation, never test: a frame chosen there would be measured on what it was chosen by. An
accuracy alone chooses a frame that always says the majority class: go by macro-F1 first, and look at what is answered, at what
was cut off, and at how often the draft is only repeated. ``--out FILE`` keeps every answer; what stands there is not asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cowest.assembly.build import build_task
from cowest.collaboration.prompts import DefaultFrames, TemplateFrames
from cowest.models.openai import OpenAIChatModel
from cowest.protocols import Task
from cowest.recipe.config import load_config
from cowest.run.store import JsonlFile
from cowest.scoring.metrics import get_metric, macro_f1
from cowest.tasks.answers import MARKER
from cowest.types import Draft, Example, Message, Sampling

CANDIDATES = Path(__file__).with_suffix(".yaml")
PARTS = ("whole", "knowledge", "answer")


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    example: Example
    draft: str | None
    answer: str | None
    cut: bool
    tokens: int
    from_draft: str | None


def part_of(text: str, part: str) -> str:
    """A draft as it is, without its answer line, or the answer line alone."""
    at = text.rfind(MARKER)
    if part == "whole" or at < 0:
        return text
    return text[:at].strip() if part == "knowledge" else text[at:].strip()


def expanded(template: str, task: Task, examples: Sequence[Example]) -> str:
    """The candidate as a recipe's template."""
    context = "Context:\n{context}\n\n" if any(e.context for e in examples) else ""
    only = f"one of: {', '.join(task.labels)}" if task.labels else "as short as it can be"
    return (
        template.replace("{query}", "{material}Question:\n{input}")
        .replace("{material}", context)
        .replace("{only}", only)
    )


class Strong:
    """The strong model; its answers are kept in a file where there is one."""

    def __init__(self, model: OpenAIChatModel, sampling: Sampling, kept: Path | None) -> None:
        self._model, self._sampling, self._kept = model, sampling, kept
        self._known: dict[str, dict[str, object]] = {}
        if kept is not None and kept.exists():
            self._known = {row["key"]: row for row in map(json.loads, kept.read_text("utf-8").splitlines())}

    async def ask(self, messages: Sequence[Message]) -> Mapping[str, object]:
        said = json.dumps([[m.content for m in messages], self._model.name, self._sampling.model_dump()])
        key = hashlib.sha256(said.encode()).hexdigest()
        if key in self._known:
            return self._known[key]
        done = await self._model.generate(messages, self._sampling)
        row: dict[str, object] = {
            "key": key,
            "asked": messages[-1].content,
            "text": done.text,
            "cut": done.finish_reason == "length",
            "tokens": done.usage.output_tokens,
        }
        self._known[key] = row
        if self._kept is not None:
            with self._kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row


def described(asked: Sequence[Asked], task: Task) -> dict[str, object]:
    """A frame's row."""
    answers, references = [a.answer for a in asked], [a.example.references for a in asked]
    row: dict[str, object] = {"n": len(asked)}
    for name in task.metrics:
        per_query = get_metric(name).per_query
        if per_query is not None:
            row[name] = round(100 * sum(map(per_query, answers, references)) / len(asked), 1)
        elif name == "macro_f1":
            row[name] = round(100 * macro_f1(answers, references, task.labels), 1)
    row |= {"none": answers.count(None), "cut": sum(a.cut for a in asked)}
    row["tokens"] = round(sum(a.tokens for a in asked) / len(asked))
    drafted = [a for a in asked if a.draft is not None]
    if drafted:
        for word, wanted in (("right", True), ("wrong", False)):
            of = [a for a in drafted if (a.from_draft in a.example.references) == wanted]
            row[f"right_where_draft_{word}"] = f"{sum(a.answer in a.example.references for a in of)}/{len(of)}"
        row["same_as_draft"] = round(100 * sum(a.answer == a.from_draft for a in drafted) / len(drafted))
    if task.labels:
        row["says"] = " ".join(f"{answers.count(label)}" for label in (*task.labels, None))
    return row


async def ask_frame(
    template: str, pairs: Sequence[tuple[Example, str | None]], task: Task, strong: Strong
) -> list[Asked]:
    """The template, filled with each question (and draft), and what came of it."""
    frames = TemplateFrames(
        DefaultFrames(task.instruction), task.instruction, solo_template=template, refine_template=template
    )
    messages = [frames.solo(e) if text is None else frames.refine(e, text) for e, text in pairs]
    rows = await asyncio.gather(*(strong.ask(m) for m in messages))
    return [
        Asked(
            example=example,
            draft=text,
            answer=task.extract(str(row["text"]), example),
            cut=bool(row["cut"]),
            tokens=int(str(row["tokens"])),
            from_draft=None if text is None else task.extract(text, example),
        )
        for (example, text), row in zip(pairs, rows, strict=True)
    ]


def pairs_of(task: Task, args: argparse.Namespace) -> list[tuple[Example, str | None]]:
    """The last training questions, each with its draft where drafts are given."""
    questions = task.examples("train")[-args.queries :]
    if args.drafts is None:
        return [(example, None) for example in questions]
    drafts = JsonlFile(args.drafts, Draft).load()
    texts = {d.example_id: part_of(d.text, args.part) for d in drafts if d.index == args.sample and d.text is not None}
    return [(example, texts[example.id]) for example in questions if texts.get(example.id)]


async def search(args: argparse.Namespace) -> None:
    """Ask every candidate; a line of the table as soon as it is there."""
    task = build_task(load_config(args.recipe))
    candidates = yaml.safe_load(args.candidates.read_text("utf-8"))["solo" if args.drafts is None else "refine"]
    pairs = pairs_of(task, args)
    key = os.environ.get(args.api_key_env) if args.api_key_env else None
    model = OpenAIChatModel(base_url=args.endpoint, model=args.model, api_key=key, concurrency=32, timeout_s=1800)
    strong = Strong(model, Sampling(temperature=0.0, max_tokens=args.max_tokens), args.out)
    gold = Counter(example.references[0] for example, _ in pairs)
    if task.labels:
        print(f"classes {', '.join(task.labels)} and no answer; gold {' '.join(str(gold[c]) for c in task.labels)}")
    if args.drafts is not None:
        alone = [Asked(e, None, task.extract(text or "", e), False, 0, None) for e, text in pairs]
        print("the draft itself", json.dumps(described(alone, task)), flush=True)
    try:
        for name, template in candidates.items():
            if args.only is None or name in args.only.split(","):
                full = expanded(template, task, [example for example, _ in pairs])
                if args.templates:
                    print(f"{name}: {json.dumps(full)}")
                asked = await ask_frame(full, pairs, task, strong)
                print(f"{name:16}", json.dumps(described(asked, task)), flush=True)
    finally:
        await model.aclose()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="whose task it is")
    parser.add_argument("--endpoint", required=True, help="an OpenAI-compatible server, up to and including /v1")
    parser.add_argument("--model", required=True, help="the strong model's name there")
    parser.add_argument("--api-key-env", help="the variable that holds the server's key")
    parser.add_argument("--queries", type=int, default=60, help="how many training questions, from the end")
    parser.add_argument("--drafts", type=Path, help="drafts.jsonl of a run over the same training questions")
    parser.add_argument("--sample", type=int, default=0, help="which of a question's drafts")
    parser.add_argument("--part", choices=PARTS, default="whole", help="show only this part of a draft")
    parser.add_argument("--candidates", type=Path, default=CANDIDATES, help="another file of candidates")
    parser.add_argument("--only", help="these candidates, by name, separated by commas")
    parser.add_argument("--max-tokens", type=int, default=256, help="of every answer")
    parser.add_argument("--out", type=Path, help="keep the answers here")
    parser.add_argument("--templates", action="store_true", help="print each candidate as a recipe would have it")
    asyncio.run(search(parser.parse_args()))


if __name__ == "__main__":
    main()
