"""A teacher behind any OpenAI-compatible endpoint: a vLLM server in the cluster, or a vendor's.

Two requests a chunk, one for the questions and one for each answer. Both prompts open with the
same words and the chunk, so that a server's prefix cache serves the second. Many chunks are under
way at once; results come back in the chunks' order.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from components.errors import ConfigError, MissingDependencyError, TeacherError
from components.generate.answers import parse_questions
from components.generate.config import GenerateConfig
from components.generate.teachers import Draft
from components.ledger import Ledger
from components.records import Chunk

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PROMPTS = Path(__file__).parents[1] / "prompts"
KEY_VARIABLE = "OPENAI_API_KEY"
RETRIES = 4  # the client's own: backoff with jitter, Retry-After respected


class OpenAITeacher:
    """See the module."""

    def __init__(self, config: GenerateConfig) -> None:
        for name in ("teacher_endpoint", "teacher_model"):
            if not getattr(config, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is missing: --teacher openai needs it",
                    hint="For example --teacher-endpoint http://localhost:8000/v1 "
                    "--teacher-model meta-llama/Llama-3.3-70B-Instruct",
                )
        self.config = config
        self.name = f"openai:{config.teacher_model}"
        self.question_prompt = Template((PROMPTS / "question.md").read_text(encoding="utf-8"))
        self.answer_prompt = Template((PROMPTS / "answer.md").read_text(encoding="utf-8"))

    def drafts(self, chunks: Sequence[Chunk], ledger: Ledger) -> Iterator[list[Draft]]:
        """See `Teacher.drafts`."""
        with asyncio.Runner() as runner:
            stream = self._stream(chunks, ledger)
            while (found := runner.run(anext(stream, None))) is not None:
                yield found

    async def _stream(self, chunks: Sequence[Chunk], ledger: Ledger) -> AsyncIterator[list[Draft]]:
        """Keep `concurrency` chunks under way, and hand out the oldest as soon as it is done."""
        async with self._client() as client:
            if chunks:  # one chunk alone first: a wrong key or name costs one call, not hundreds
                yield await self._about(client, chunks[0], ledger)
            width = self.config.teacher_concurrency
            pending = [
                asyncio.create_task(self._about(client, chunk, ledger))
                for chunk in chunks[1 : width + 1]
            ]
            upcoming = iter(chunks[width + 1 :])
            try:
                while pending:
                    yield await pending.pop(0)
                    if (chunk := next(upcoming, None)) is not None:
                        pending.append(asyncio.create_task(self._about(client, chunk, ledger)))
            finally:
                for task in pending:
                    task.cancel()

    async def _about(self, client: "AsyncOpenAI", chunk: Chunk, ledger: Ledger) -> list[Draft]:
        reply, _ = await self._ask(
            client,
            self.question_prompt.substitute(
                chunk=chunk.text, count=self.config.questions_per_chunk
            ),
            ledger,
        )
        questions = parse_questions(reply, self.config.questions_per_chunk)
        if not questions:
            return [Draft(fault="no question in the reply")]
        return [await self._answer(client, chunk, question, ledger) for question in questions]

    async def _answer(
        self, client: "AsyncOpenAI", chunk: Chunk, question: str, ledger: Ledger
    ) -> Draft:
        prompt = self.answer_prompt.substitute(chunk=chunk.text, question=question)
        reply, finish_reason = await self._ask(client, prompt, ledger)
        if finish_reason == "length":
            return Draft(question=question, fault="answer cut off at --teacher-max-tokens")
        return Draft(question=question, cot_answer=reply.strip())

    async def _ask(self, client: "AsyncOpenAI", prompt: str, ledger: Ledger) -> tuple[str, str]:
        """One request: the reply and its finish reason."""
        from openai import APIConnectionError, APIStatusError

        try:
            response = await client.chat.completions.create(
                model=self.config.teacher_model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=self.config.teacher_max_tokens,
                temperature=0,
                seed=self.config.seed,
            )
        except APIConnectionError as error:
            raise TeacherError(
                f"--teacher-endpoint {self.config.teacher_endpoint}: cannot be reached "
                f"({error.__cause__ or error})",
                hint="Is the server up? Try: curl "
                f"{self.config.teacher_endpoint.rstrip('/')}/models",
            ) from None
        except APIStatusError as error:
            raise TeacherError(
                f"--teacher-endpoint {self.config.teacher_endpoint}: HTTP {error.status_code} "
                f"({error.message[:300]})",
                hint=f"Check --teacher-model and {KEY_VARIABLE}.",
            ) from None
        except ValueError as error:  # a body that is not JSON
            raise self._not_the_protocol(str(error)) from None
        if not getattr(response, "choices", None):
            raise self._not_the_protocol("no choices in the answer")
        usage = response.usage
        ledger.count(
            requests=1,
            tokens_in=usage.prompt_tokens if usage else 0,
            tokens_out=usage.completion_tokens if usage else 0,
        )
        choice = response.choices[0]
        return choice.message.content or "", choice.finish_reason or ""

    def _not_the_protocol(self, why: str) -> TeacherError:
        return TeacherError(
            f"--teacher-endpoint {self.config.teacher_endpoint}: does not answer as an "
            f"OpenAI-compatible endpoint ({why})",
            hint="The URL usually ends in /v1.",
        )

    @asynccontextmanager
    async def _client(self) -> AsyncIterator["AsyncOpenAI"]:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise MissingDependencyError(
                "--teacher openai needs the openai client",
                hint="pip install -e '.[generate]' in a checkout of raft-pipelines",
            ) from None
        async with AsyncOpenAI(
            base_url=self.config.teacher_endpoint,
            api_key=_key(),
            max_retries=RETRIES,
            timeout=self.config.teacher_timeout,
        ) as client:
            yield client


def _key() -> str:
    """The key from the environment, without the line end that mounted secrets tend to have.

    Raises:
        ConfigError: it could not be sent; the key itself is never shown.
    """
    # A server of one's own asks for no key, but the client insists on one.
    key = os.environ.get(KEY_VARIABLE, "").strip() or "none"
    if not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{KEY_VARIABLE} holds characters that no key has",
            hint=f"Look for line ends or quotes that were pasted into {KEY_VARIABLE}.",
        )
    return key
