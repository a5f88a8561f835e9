"""What a mask over the vocabulary costs in decoding: the same rows with and without a grammar that allows every text.

python benchmarks/held.py MODEL [--rows 1 16] [--tokens 64] [--repeat 5]     # a folder, a hub name, lab:strong

Both write the same number of tokens with the same seeds, in turns, so that a busy machine slows both; the ratio is of the medians.
``json`` holds the rows to a schema with a long string.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

from pydantic import JsonValue

from cowest.assembly.places import model_path
from cowest.models.held import json_grammar
from cowest.models.local import LocalChatModel
from cowest.types import Held, Message, ModelRef, Sampling

ASKED = (Message(role="user", content="Write on and on about everything that you know."),)
STRING: dict[str, JsonValue] = {
    "type": "object",
    "properties": {"text": {"type": "string", "minLength": 5000}},
    "required": ["text"],
    "additionalProperties": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    asyncio.run(measure(args))


async def measure(args: argparse.Namespace) -> None:
    model = LocalChatModel(ModelRef(base=model_path(args.model)), device="cpu", batch_size=max(args.rows))
    ways = {"free": None, "any": "start: TEXT\nTEXT: /(.|\\n)+/", "json": json_grammar(STRING)}
    for rows in args.rows:
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(args.repeat + 1):
            for name, grammar in ways.items():
                seeds = [rows * repeat + i for i in range(rows)]
                sampled = [Sampling(temperature=1.0, max_tokens=args.tokens, seed=seed) for seed in seeds]
                asked = sampled if grammar is None else [Held(**s.model_dump(), grammar=grammar) for s in sampled]
                began = time.perf_counter()
                done = await asyncio.gather(*(model.generate(ASKED, one) for one in asked))
                tokens = sum(one.usage.output_tokens for one in done)
                if repeat:  # the first warms up
                    spent[name].append((time.perf_counter() - began) / tokens)
        medians = {name: statistics.median(found) for name, found in spent.items()}
        told = {f"{name}_ms_a_token": round(value * 1000, 3) for name, value in medians.items()}
        ratios = {f"{name}_ratio": round(medians[name] / medians["free"], 3) for name in ways if name != "free"}
        print(json.dumps({"rows": rows, **told, **ratios}), flush=True)
    await model.aclose()


if __name__ == "__main__":
    main()
