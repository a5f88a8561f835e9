"""A provider with a batch API: OpenAI's files and batches, in memory, on loopback, with faults."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import JsonValue


@dataclass
class Job:
    """A batch."""

    id: str
    file: str
    metadata: dict[str, str]
    looks: int = 0
    status: str = "validating"
    output: str | None = None
    errors: str | None = None
    done: int = 0
    failed: int = 0
    problems: list[dict[str, JsonValue]] = field(default_factory=list)

    def json(self) -> dict[str, JsonValue]:
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "input_file_id": self.file,
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.errors,
            "errors": {"object": "list", "data": list(self.problems)} if self.problems else None,
            "request_counts": {"total": self.done + self.failed, "completed": self.done, "failed": self.failed},
            "metadata": dict(self.metadata),
        }


class Provider:
    """``answered`` counts how often each request was worked on (and paid for); ``end`` is the state that jobs come to."""

    def __init__(self, answer: Callable[[dict[str, JsonValue]], str] | None = None) -> None:
        self._answer = answer or (lambda body: f"answer to {json.dumps(body['messages'])}")
        self.live = 0
        self.files: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        self.answered: Counter[str] = Counter()
        self.looks_until_done = 2
        self.end = "completed"
        self.share = 1.0
        self.fail_lines: Callable[[int], bool] = lambda number: False
        self.look_faults: list[int] = []
        self.upload_faults: list[int] = []
        self.create_faults: list[int] = []  # a status, after which nothing was made
        self.lost_creations = 0  # so many batches are made, and the connection breaks before the answer
        self.download_faults: list[str] = []  # bodies sent with status 200 in place of the file
        self.page = 100
        self.list_faults: list[int] = []
        self.forget_files = False
        self.refuse_to_create = False
        self.said: asyncio.Queue[str] = asyncio.Queue()
        self.hold: str | None = None
        self.released = asyncio.Event()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._look)
        app.router.add_post("/v1/chat/completions", self._live)
        async with TestServer(app, host="127.0.0.1") as server:
            yield str(server.make_url("/v1"))

    async def _at(self, moment: str) -> None:
        """Tell the test that this moment has come; wait there when it asked for that."""
        self.said.put_nowait(moment)
        if self.hold == moment:
            await self.released.wait()

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        if self.upload_faults:
            return web.Response(status=self.upload_faults.pop(0), text="hiccup")
        sent = form["file"]
        assert form["purpose"] == "batch" and isinstance(sent, web.FileField)
        name = f"file-{len(self.files)}"
        self.files[name] = sent.file.read().decode()
        await self._at("uploaded")
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def _content(self, request: web.Request) -> web.Response:
        await self._at("downloading")
        if self.download_faults:
            return web.Response(text=self.download_faults.pop(0), content_type="text/html")
        if self.forget_files:
            return web.json_response({"error": {"message": "no such file"}}, status=404)
        return web.Response(text=self.files[request.match_info["id"]], content_type="application/octet-stream")

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert body["endpoint"] == "/v1/chat/completions" and body["completion_window"] == "24h"
        if self.refuse_to_create:
            return web.json_response({"error": {"message": "too many enqueued tokens"}}, status=400)
        if self.create_faults:
            return web.Response(status=self.create_faults.pop(0), text="hiccup")
        job = Job(f"batch_{len(self.jobs)}", body["input_file_id"], body["metadata"])
        self.jobs[job.id] = job
        lines = [json.loads(line) for line in self.files[job.file].split("\n") if line]
        ids = [line["custom_id"] for line in lines]
        if len(set(ids)) != len(ids):
            job.status, job.problems = "failed", [{"code": "duplicate_custom_id", "line": 2, "message": "seen before"}]
        elif self.end != "failed":
            self._work(job, lines)
        await self._at("created")
        if self.lost_creations:
            self.lost_creations -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response(job.json())

    def _work(self, job: Job, lines: list[dict[str, JsonValue]]) -> None:
        done, failed = [], []
        for number, line in enumerate(lines):
            key = str(line["custom_id"])
            if number >= self.share * len(lines):
                error: JsonValue = {"code": "batch_expired", "message": "not done in time"}
                failed.append({"custom_id": key, "response": None, "error": error})
            elif self.fail_lines(number):
                body: JsonValue = {"error": {"message": "maximum context length exceeded"}}
                failed.append({"custom_id": key, "response": {"status_code": 400, "body": body}, "error": None})
            else:
                self.answered[json.dumps(line["body"], sort_keys=True)] += 1
                done.append({"custom_id": key, "response": {"status_code": 200, "body": self._reply(line["body"])}})
        random.shuffle(done)
        job.done, job.failed = len(done), len(failed)
        for kind, rows in (("output", done), ("errors", failed)):
            if rows:
                name = f"file-{kind}-{job.id}"
                self.files[name] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                setattr(job, kind, name)

    async def _list(self, request: web.Request) -> web.Response:
        if self.list_faults:
            return web.Response(status=self.list_faults.pop(0), text="hiccup")
        newest = [job.json() for job in reversed(self.jobs.values())]
        after = request.query.get("after")
        start = next((i + 1 for i, job in enumerate(newest) if job["id"] == after), 0)
        shown: JsonValue = newest[start : start + self.page]  # type: ignore[assignment]
        more = start + self.page < len(newest)
        return web.json_response({"object": "list", "data": shown, "has_more": more})

    async def _look(self, request: web.Request) -> web.Response:
        if self.look_faults:
            return web.Response(status=self.look_faults.pop(0), text="hiccup")
        job = self.jobs.get(request.match_info["id"])
        if job is None:
            return web.json_response({"error": {"message": "no such batch"}}, status=404)
        await self._at("looked")
        job.looks += 1
        if job.status not in ("failed", "completed", "expired", "cancelled"):
            job.status = self.end if job.looks >= self.looks_until_done else "in_progress"
            if job.status == "failed":
                job.problems = [{"code": "invalid_json_line", "line": 1, "message": "This line is not JSON."}]
        shown = job.json()
        if job.status == "in_progress":
            shown |= {"output_file_id": None, "error_file_id": None}
        return web.json_response(shown)

    async def _live(self, request: web.Request) -> web.Response:
        self.live += 1
        return web.json_response(self._reply(await request.json()))

    def _reply(self, body: JsonValue) -> JsonValue:
        """The same answer to the same request."""
        assert isinstance(body, dict)
        message: JsonValue = {"role": "assistant", "content": self._answer(body)}
        choice: JsonValue = {"index": 0, "message": message, "finish_reason": "stop"}
        return {"id": "c", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}
