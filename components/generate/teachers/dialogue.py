"""What a teacher is asked about a chunk: for questions, then for an answer to each.

Questions are asked for as JSON that keeps to a schema, or as lines. The first chunks, in their
order, decide which of them this teacher can do, so that the same chunks give the same rows however
calls overlap.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from components.core.breaker import PermanentError
from components.core.chat_protocol import CUT_OFF, FILTERED, FINISHED, Completion, Request
from components.core.endpoint import BY_FILTER
from components.core.progress import say
from components.core.raft_form import without_thought
from components.core.records import Chunk
from components.generate.questions import parse_questions
from components.generate.teachers import Draft
from components.generate.teachers.prompts import Prompts

ONLY_REASONING = "only reasoning"
MORE_ROOM = 2  # times --teacher-max-tokens, for the second try of an answer that was cut off
MOST_CHARACTERS_PER_TOKEN = 40  # a longer reply did not keep to the tokens that it was given
CHUNKS_TO_DECIDE = 3  # without a question in either form, after which JSON is asked for

Ask = Callable[[Request], Awaitable[Completion]]


class Dialogue:
    """The dialogue of one run; see the module."""

    def __init__(self, prompts: Prompts, ask: Ask) -> None:
        self.prompts = prompts
        self.ask = ask
        self._as_json: bool | None = None
        self._undecided = CHUNKS_TO_DECIDE
        self._deciding = asyncio.Lock()  # taken in the chunks' order

    async def drafts_about(self, chunk: Chunk) -> list[Draft]:
        """Drafts about a chunk, or one that names why there are none."""
        if chunk.gold:
            return [await self._answered(chunk.gold.question, chunk)]
        try:
            questions = await self._questions(chunk)
        except PermanentError as error:
            return [Draft(fault=f"questions: {error.reason}", cot_answer=error.detail)]
        return await asyncio.gather(*(self._answered(question, chunk) for question in questions))

    async def _questions(self, chunk: Chunk) -> list[str]:
        if self._as_json is not None:
            return (await self._asked(chunk, as_json=self._as_json))[0]
        first = asyncio.create_task(self._asked(chunk, as_json=True))  # while others may decide
        try:
            async with self._deciding:
                if self._as_json is None:
                    return await self._decide(chunk, first)
            return (await (first if self._as_json else self._asked(chunk, as_json=False)))[0]
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)

    async def _decide(
        self, chunk: Chunk, first: "asyncio.Task[tuple[list[str], bool]]"
    ) -> list[str]:
        """Questions in whichever form gives any; that form is kept for the chunks that follow."""
        try:
            try:
                questions, self._as_json = await first
            except NoQuestions:
                questions, self._as_json = await self._asked(chunk, as_json=False)
            if not self._as_json:
                say("  the teacher gives no questions as JSON: lines are requested")
            return questions
        finally:
            self._undecided -= 1
            if self._as_json is None and not self._undecided:
                self._as_json = True

    async def _asked(self, chunk: Chunk, *, as_json: bool) -> tuple[list[str], bool]:
        """Questions about a chunk, and whether they were asked for as JSON.

        After a reply that was cut off, one question is asked for, as a line; that says nothing
        about the form.

        Raises:
            PermanentError: there are none, or the reply cannot be used.
        """
        wanted = self.prompts.config.questions_per_chunk
        for count, form in dict.fromkeys(((wanted, as_json), (1, False))):
            request = self.prompts.for_questions(chunk, count, as_json=form)
            completion = await self.ask(request)
            text = _usable(completion, request)
            cut_off = completion.finish_reason == CUT_OFF
            if questions := parse_questions(text, count, chunk.type, cut_off=cut_off):
                return questions, as_json
            if not cut_off:
                raise NoQuestions("none in the reply", detail=completion.text)
        raise NoQuestions("cut off", detail=completion.text)

    async def _answered(self, question: str, chunk: Chunk) -> Draft:
        request = self.prompts.for_answer(chunk, question)
        try:
            completion = await self.ask(request)
            if completion.finish_reason == CUT_OFF:
                request = replace(request, max_tokens=MORE_ROOM * request.max_tokens)
                completion = await self.ask(request)
            text = _usable(completion, request)
            if completion.finish_reason == CUT_OFF:
                reason = f"cut off, even with {MORE_ROOM} times --teacher-max-tokens"
                if completion.text.strip() and not text.strip():
                    reason = ONLY_REASONING
                raise PermanentError(reason, detail=completion.text)
        except PermanentError as error:
            return Draft(
                question=question, cot_answer=error.detail, fault=f"answer: {error.reason}"
            )
        return Draft(question=question, cot_answer=text.strip())


class NoQuestions(PermanentError):
    """A reply was read to its end and asks nothing."""


def _usable(completion: Completion, request: Request) -> str:
    """A reply's text without what the model thought.

    Raises:
        PermanentError: the reply cannot be used.
    """
    reason = completion.finish_reason
    text = without_thought(completion.text)
    fault = ""
    if reason == FILTERED:
        fault = BY_FILTER
    elif reason not in (FINISHED, CUT_OFF):
        fault = f"finish_reason {reason or 'null'}"
    elif len(completion.text) > MOST_CHARACTERS_PER_TOKEN * MORE_ROOM * request.max_tokens:
        fault = "far longer than --teacher-max-tokens"
    elif reason != CUT_OFF and completion.text.strip() and not text.strip():
        fault = ONLY_REASONING
    if fault:
        raise PermanentError(fault, detail=completion.text)
    return text
