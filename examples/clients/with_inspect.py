"""Inspect (inspect-ai): an evaluation of two questions over chat completions, and one over the Responses API."""

import os
import tempfile

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all

os.environ |= {"COWEST_BASE_URL": URL, "COWEST_API_KEY": KEY, "OPENAI_BASE_URL": URL, "OPENAI_API_KEY": KEY}

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.util import json_schema
from pydantic import BaseModel


class Verdict(BaseModel):
    sure: bool


def evaluated(model, **config):
    samples = [Sample(input=QUESTION, target="no"), Sample(input="Is water wet?", target="yes")]
    settings = GenerateConfig(max_tokens=TOKENS, **config)
    task = Task(dataset=samples, scorer=includes(), config=settings)
    (log,) = eval(task, model=model, display="none", log_dir=tempfile.mkdtemp())
    if log.status != "success":
        raise RuntimeError(log.error.message)
    return [sample.output.completion for sample in log.samples]


form = ResponseSchema(name="verdict", json_schema=json_schema(Verdict))
try_all(
    chat=lambda: evaluated(f"openai-api/cowest/{MODEL}"),
    schema=lambda: Verdict.model_validate_json(evaluated(f"openai-api/cowest/{MODEL}", response_schema=form)[0]),
    logprobs=lambda: evaluated(f"openai-api/cowest/{MODEL}", logprobs=True),
    responses=lambda: evaluated(get_model(f"openai/{MODEL}", responses_api=True)),
)
