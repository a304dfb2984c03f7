"""The routes of a server: each reads a request, has vectors or hits made, and writes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gemb import __version__
from gemb.embedding.pipeline import shortened
from gemb.errors import GembError, UsageError
from gemb.index.where import WrongFilter
from gemb.models.profile import check_dims
from gemb.serving import forms
from gemb.serving.answers import Answer, as_json, hit_fields, rows_as_json
from gemb.serving.batching import Batcher, Job
from gemb.serving.bodies import Bodies, unless_gone
from gemb.serving.guard import Access, Guard
from gemb.serving.limits import Limits, estimated_tokens
from gemb.serving.metrics import Metrics
from gemb.serving.page import page
from gemb.serving.prompts import ServedPrompts
from gemb.serving.refusals import Refused
from gemb.texts.records import Record, unfit

if TYPE_CHECKING:
    from gemb.embedding.model import Model
    from gemb.models.prompts import Prompt
    from gemb.search.interface import Index, SearchHit

SAME = 0.999  # cosine of a text's vectors, computed alone and with others
MOST_HITS = 1000
SEARCHERS = 4  # threads: they wait for the disk, and by turns for the model
TOKEN_IDS = (
    "{place} is token ids; send texts: the ids of another tokenizer would give wrong vectors "
    "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
)


class Service:
    """A model, indexes, and the routes to them."""

    def __init__(
        self,
        model: Model,
        prompts: ServedPrompts,
        indexes: Mapping[str, Index],
        *,
        access: Access,
        limits: Limits,
        log_json: bool = False,
    ) -> None:
        """Take an open model; the thread that computes is started.

        Args:
            model: an open one.
            prompts: under which names it is served.
            indexes: by name.
            access: who may ask.
            limits: of requests.
            log_json: a line of JSON on stderr for each request.
        """
        self._model, self._prompts, self._indexes, self._limits = model, prompts, indexes, limits
        self.is_ready = False
        self._batcher = Batcher(model.encoder, limits, lambda batch: self._metrics.batch(batch))
        self._metrics = Metrics(lambda: self._batcher.queued_tokens)
        self._bodies = Bodies(limits)
        self._searching = 0
        self._searchers = ThreadPoolExecutor(SEARCHERS, thread_name_prefix="gemb-search")
        self._began = int(time.time())
        routes = {
            ("POST", "/v1/embeddings"): self.openai_embeddings,
            ("GET", "/v1/models"): self.models,
            ("GET", "/v1/models/"): self.models,
            ("POST", "/v1/search"): self.search,
            ("POST", "/embed"): self.tei_embed,
            ("POST", "/rerank"): self.tei_rerank,
            ("POST", "/api/embed"): self.ollama_embed,
            ("GET", "/health"): self.health,
            ("GET", "/info"): self.info,
            ("GET", "/metrics"): self.metrics,
        }
        if indexes:
            routes["GET", "/"] = self.page
        self.app = Guard(
            routes,
            access,
            self._bodies,
            self._metrics,
            log_json=log_json,
            prefixes=("/v1/models/",),
        )

    async def self_test(self) -> None:
        """Compute and search once, so that what is broken shows before a request does.

        Raises:
            GembError: the model gives wrong vectors, or an index does not fit it.
        """
        texts = ["self-test", "a second, longer text of the self-test"]
        prompt = self._prompts.prompt("document")
        job = self._submitted(_records(texts, prompt))
        await job.done
        answer = self._checked(job, may_cut=True)
        for text, together in zip(texts, answer.vectors, strict=True):
            alone = await asyncio.to_thread(self._model.encode_document, text)
            if shortened(together[None], len(alone))[0] @ alone > SAME:
                continue
            raise GembError("the self-test failed: a text's vector depends on the texts beside it")
        for index in self._indexes.values():
            await asyncio.to_thread(partial(index.search, "self-test", k=1, weak=True))
        self.is_ready = True

    def close(self) -> None:
        """End the threads, each after what it is at."""
        self._searchers.shutdown(cancel_futures=True)
        self._batcher.close()

    async def openai_embeddings(self, request: Request) -> Response:
        """`POST /v1/embeddings`."""
        form = await self._bodies.read_json(request, forms.OpenAIEmbeddings)
        task = self._prompts.task_of(form.model, form.prompt_name, form.input_type)
        if form.encoding_format not in ("float", "base64"):
            raise Refused(
                400,
                f"encoding_format {form.encoding_format[:80]!r}; it is float or base64",
                code="invalid_value",
                param="encoding_format",
            )
        texts = self._texts(form.input, "input")
        may_cut = form.truncate not in (False, "NONE")
        answer = await self._vectors(request, texts, task, form.dimensions, may_cut=may_cut)
        rows = await rows_as_json(answer.vectors, is_base64=form.encoding_format == "base64")
        data = [
            b'{"object":"embedding","index":%d,"embedding":%s}' % (index, row)
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
        body = b'{"object":"list","data":[%s],"model":%s,"usage":%s}' % (
            b",".join(data),
            orjson.dumps(form.model),
            orjson.dumps(usage),
        )
        return as_json(body, task=task, answer=answer)

    async def tei_embed(self, request: Request) -> Response:
        """`POST /embed` of text-embeddings-inference."""
        form = await self._bodies.read_json(request, forms.TEIEmbed)
        if not form.normalize:
            raise Refused(400, "normalize: vectors here have length 1", code="Validation")
        task = self._prompts.task_of(None, form.prompt_name)
        texts = self._texts(form.inputs, "inputs")
        may_cut = form.truncate is not False
        answer = await self._vectors(request, texts, task, form.dimensions, may_cut=may_cut)
        rows = await rows_as_json(answer.vectors)
        return as_json(b"[%s]" % b",".join(rows), task=task, answer=answer)

    async def tei_rerank(self, request: Request) -> Response:
        """`POST /rerank` of text-embeddings-inference; the scores are cosines."""
        form = await self._bodies.read_json(request, forms.TEIRerank)
        texts = self._texts(form.texts, "texts")
        (query,) = self._texts(form.query, "query")
        records = [
            *_records([query], self._prompts.prompt("query"), "query"),
            *_records(texts, self._prompts.prompt("document"), "texts"),
        ]
        answer = await self._answer(request, records, may_cut=form.truncate is not False)
        scores = (answer.vectors[1:] @ answer.vectors[0]).tolist()
        order = sorted(range(len(texts)), key=lambda index: -scores[index])
        hits = [
            {"index": index, "score": scores[index]}
            | ({"text": texts[index]} if form.return_text else {})
            for index in order
        ]
        return as_json(orjson.dumps(hits), answer=answer)

    async def ollama_embed(self, request: Request) -> Response:
        """`POST /api/embed` of Ollama."""
        began = time.monotonic_ns()
        form = await self._bodies.read_json(request, forms.OllamaEmbed)
        task = self._prompts.task_of(form.model)
        texts = self._texts(form.input, "input")
        answer = await self._vectors(request, texts, task, form.dimensions, may_cut=form.truncate)
        rows = await rows_as_json(answer.vectors)
        body = b'{"model":%s,"embeddings":[%s],"total_duration":%d,"load_duration":0,' % (
            orjson.dumps(form.model),
            b",".join(rows),
            time.monotonic_ns() - began,
        )
        return as_json(body + b'"prompt_eval_count":%d}' % answer.tokens, task=task, answer=answer)

    async def search(self, request: Request) -> Response:
        """`POST /v1/search`: passages of an index that answer a question."""
        form = await self._bodies.read_json(request, forms.Search)
        name, index = self._index(form.index)
        if not 1 <= form.k <= MOST_HITS:
            raise Refused(400, f"k is {form.k}; it is 1 to {MOST_HITS}", param="k")
        if form.min_score is not None and not -1 <= form.min_score <= 1:
            message = f"min_score={form.min_score!r}; it is a cosine, from -1 to 1"
            raise Refused(400, message, code="invalid_value", param="min_score")
        (question,) = self._texts(form.query, "query")
        if len(question) > self._limits.question:
            raise Refused(
                413,
                f"query has {len(question):,} characters; the most is {self._limits.question:,}",
                code="too_long",
                param="query",
            )
        if self._searching >= self._limits.searches:
            raise Refused(
                429,
                f"{self._searching} searches are under way; try again in 1 s",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        request.state.told.texts = 1
        work = partial(
            index.search,
            question,
            form.k,
            where=form.where,
            where_seconds=self._limits.where_s,
            min_score=form.min_score,
            weak=form.weak,
            hybrid=form.hybrid,
        )
        try:
            hits = await self._searched(request, work)
        except WrongFilter as error:
            raise Refused(400, str(error), code="invalid_value", param="where") from None
        except GembError as error:
            raise Refused(503, f"the index {name} cannot be searched: {error}") from None
        entries = [hit_fields(rank, hit) for rank, hit in enumerate(hits, 1)]
        options = orjson.OPT_NON_STR_KEYS
        return as_json(orjson.dumps({"index": name, "hits": entries}, str, options))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`, and one of them."""
        entries = [
            {"id": name, "object": "model", "created": self._began, "owned_by": "gemb"}
            for name in self._prompts.names
        ]
        wanted = request.scope["path"].removeprefix("/v1/models").strip("/")
        if not wanted:
            return as_json(orjson.dumps({"object": "list", "data": entries}))
        self._prompts.task_of(wanted)
        return as_json(orjson.dumps({**entries[0], "id": wanted}))

    async def health(self, request: Request) -> Response:
        """`GET /health`: 200 once the self-test has passed, until the server ends."""
        if not self.is_ready or not self._batcher.is_alive:
            raise Refused(503, "not ready", code="not_ready", headers={"retry-after": "1"})
        return as_json(b'{"status":"ok"}')

    async def info(self, request: Request) -> Response:
        """`GET /info`: the model and the bounds."""
        profile = self._model.profile
        entries = {
            "model_id": self._prompts.name,
            "fingerprint": profile.fingerprint,
            "dimensions": list(profile.matryoshka_dims),
            "max_input_length": profile.max_tokens,
            "max_client_batch_size": self._limits.inputs,
            "max_batch_tokens": self._limits.batch_tokens,
            "default_prompt": self._prompts.default,
            "backend": self._model.backend,
            "indexes": sorted(self._indexes),
            "version": __version__,
        }
        return as_json(orjson.dumps(entries))

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(self._metrics.text(), headers={"content-type": self._metrics.content_type})

    async def page(self, request: Request) -> Response:
        """`GET /`: the page that searches the indexes."""
        return page(sorted(self._indexes))

    async def _searched(
        self, request: Request, work: Callable[[], list[SearchHit]]
    ) -> list[SearchHit]:
        """Return what a search finds; its place is free once it has ended, or was not begun.

        Raises:
            WrongFilter: `where` is not what it should be.
            GembError: the index is damaged, not there or of a model that is not here, or the model
                fails.
            ClientGone: nobody waits any more.
        """
        loop = asyncio.get_running_loop()
        search = self._searchers.submit(work)
        self._searching += 1
        search.add_done_callback(lambda _: loop.call_soon_threadsafe(self._count_searched))
        return await unless_gone(request, asyncio.wrap_future(search))

    def _count_searched(self) -> None:
        self._searching -= 1

    def _index(self, name: str | None) -> tuple[str, Index]:
        """Return the index of a request, and its name.

        Raises:
            Refused: 404: there is no such index; 400: none is named, and there are several.
        """
        names = ", ".join(sorted(self._indexes)) or "none: gemb serve --index NAME=INDEX"
        if name is None:
            if len(self._indexes) != 1:
                raise Refused(400, f"name an index; here are {names}", param="index")
            return next(iter(self._indexes.items()))
        if name not in self._indexes:
            message = f"no index {name[:80]!r}; here are {names}"
            raise Refused(404, message, code="index_not_found", param="index")
        return name, self._indexes[name]

    def _texts(self, given: str | Sequence[Any], param: str) -> list[str]:
        """Return the texts of a field.

        Raises:
            Refused: 400 no texts, or one that has no vector; 413 too many.
        """
        texts = [given] if isinstance(given, str) else list(given)
        if not texts:
            raise Refused(400, f"{param} is empty; send a text", code="invalid_value", param=param)
        if len(texts) > self._limits.inputs:
            raise Refused(
                413,
                f"{param} has {len(texts):,} texts; the most is {self._limits.inputs:,}",
                code="too_many_inputs",
                param=param,
            )
        for index, text in enumerate(texts):
            place = param if isinstance(given, str) else f"{param}[{index}]"
            if isinstance(text, int | list):
                message = TOKEN_IDS.format(place=param)
                raise Refused(400, message, code="token_ids", param=param)
            if not isinstance(text, str):
                kind = "null" if text is None else type(text).__name__
                raise Refused(
                    400, f"{place} is {kind}, not a string", code="invalid_value", param=param
                )
            if wrong := unfit(text):
                raise Refused(400, f"{place}: {wrong.message}", code=wrong.code, param=param)
        return texts

    async def _vectors(
        self,
        request: Request,
        texts: Sequence[str],
        task: str,
        dim: int | None,
        *,
        may_cut: bool,
    ) -> Answer:
        """Return the vectors of texts with the prompt of a task.

        Raises:
            Refused: 400 no such width, or a text is too long and may not be cut; 413 the texts
                are too long together; 429 the queue is full; 500 the model fails.
            ClientGone: nobody waits any more.
        """
        profile = self._model.profile
        try:
            check_dims([] if dim is None else [dim], profile.matryoshka_dims)
        except UsageError as error:
            raise Refused(400, str(error), code="invalid_value", param="dimensions") from None
        records = _records(texts, self._prompts.prompt(task))
        answer = await self._answer(request, records, may_cut=may_cut)
        vectors = shortened(answer.vectors, dim or profile.width)
        return Answer(vectors=vectors, tokens=answer.tokens, cut=answer.cut)

    async def _answer(
        self, request: Request, records: Sequence[Record], *, may_cut: bool
    ) -> Answer:
        """Return the vectors of records, [n, dim of the model]; see `_vectors`."""
        self._bodies.check_room(4 * self._model.profile.width * len(records))
        job = self._submitted(records)
        request.state.told.texts = len(records)
        try:
            await unless_gone(request, job.done)
        except GembError as error:
            raise Refused(500, f"the model fails: {error}", code="model_failed") from None
        finally:
            self._batcher.cancel(job)
        answer = self._checked(job, may_cut=may_cut)
        request.state.told.tokens = answer.tokens
        return answer

    def _submitted(self, records: Sequence[Record]) -> Job:
        most = self._model.profile.max_tokens
        sizes = [estimated_tokens(record.text, most) for record in records]
        if sum(sizes) > self._limits.request_tokens:
            raise Refused(
                413,
                f"about {sum(sizes):,} tokens; the most is {self._limits.request_tokens:,}: "
                "split the request",
                code="too_many_tokens",
            )
        if not self._batcher.is_alive:
            raise Refused(503, "the server is out of order; start it again", code="not_ready")
        return self._batcher.submit(records, sizes)

    def _checked(self, job: Job, *, may_cut: bool) -> Answer:
        """Return the answer of a job that is done.

        Raises:
            Refused: 500 a text has no vector; 400 one was cut that may not be.
        """
        most = self._model.profile.max_tokens
        for index in range(len(job.records)):
            row = job.rows[index]
            place = row.record.place
            if row.error:
                message = f"{place}: the model gives no vector: {row.error.code}"
                raise Refused(500, message, code="model_failed")
            if row.is_cut and not may_cut:
                raise Refused(
                    400,
                    f"{place} is longer than the {most:,} tokens that the model takes; truncate "
                    "cuts it",
                    code="context_length_exceeded",
                )
        return Answer(
            vectors=job.vectors,
            tokens=sum(min(row.tokens, most) for row in job.rows.values()),
            cut=sum(row.is_cut for row in job.rows.values()),
        )


def _records(texts: Sequence[str], prompt: Prompt, param: str = "input") -> list[Record]:
    """Return texts as records that have their prompt."""
    return [
        Record(index, f"{param}[{index}]", prompt.render(text)) for index, text in enumerate(texts)
    ]
