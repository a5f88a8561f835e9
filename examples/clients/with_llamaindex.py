"""LlamaIndex's class for compatible servers."""

from typing import Literal

from cells import KEY, MODEL, QUESTION, TOKENS, URL, try_all
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


def model(**more):
    where = {"model": MODEL, "api_base": URL, "api_key": KEY, "context_window": 2048, "max_retries": 0}
    return OpenAILike(is_function_calling_model=True, **where, **more)


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


def judge(answer: Literal["yes", "no"]) -> str:
    """Give a verdict."""
    return answer


turns = [ChatMessage(role="user", content=QUESTION)]
chat = model(is_chat_model=True, max_tokens=TOKENS)
free = model(is_chat_model=True, max_tokens=120)


def tools():
    done = free.chat_with_tools([FunctionTool.from_defaults(judge)], user_msg=QUESTION, tool_required=True)
    return free.get_tool_calls_from_response(done)[0].tool_kwargs


try_all(
    chat=lambda: chat.chat(turns).message.content,
    stream=lambda: "".join(part.delta or "" for part in chat.stream_chat(turns)),
    schema=lambda: free.as_structured_llm(Verdict).chat(turns).raw,
    tools=tools,
    completions=lambda: model(is_chat_model=False, max_tokens=TOKENS).complete(QUESTION).text,
)
