"""What is asked about a chunk, in which order, and what becomes of the replies.

Two requests a row: one for the questions, one for each answer. Both prompts open with the same
words and the chunk, so a prefix cache serves the second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from components.core.breaker import PermanentError
from components.core.chat_protocol import CUT_OFF, FILTERED, Completion, Request
from components.core.endpoint import BY_FILTER
from components.core.records import Chunk
from components.generate.questions import parse_questions
from components.generate.teachers.prompts import Prompts
from components.generate.teachers.teacher import Draft

MORE_ROOM = 2  # times --teacher-max-tokens, for the second try of a reply that was cut off
MOST_CHARACTERS_PER_TOKEN = 40  # a longer reply did not keep to the tokens that it was given

Ask = Callable[[Request], Awaitable[Completion]]


async def drafts_about(chunk: Chunk, prompts: Prompts, ask: Ask) -> list[Draft]:
    """Ask for questions about a chunk, then for an answer to each."""
    try:
        reply = await _text(prompts.for_questions(chunk), ask)
    except PermanentError as error:
        return [Draft(fault=f"questions: {error.reason}")]
    questions = parse_questions(reply, prompts.config.questions_per_chunk, chunk.type)
    if not questions:
        return [Draft(fault="questions: none in the reply")]
    return await asyncio.gather(
        *(_answered(question, chunk, prompts, ask) for question in questions)
    )


async def _answered(question: str, chunk: Chunk, prompts: Prompts, ask: Ask) -> Draft:
    try:
        reply = await _text(prompts.for_answer(chunk, question), ask)
    except PermanentError as error:
        return Draft(question=question, fault=f"answer: {error.reason}")
    return Draft(question=question, cot_answer=reply.strip())


async def _text(request: Request, ask: Ask) -> str:
    """The reply's text; one that was cut off is asked for once more, with more room.

    Raises:
        PermanentError: there is none, or it cannot be used.
    """
    completion = await ask(request)
    if completion.finish_reason == CUT_OFF:
        completion = await ask(replace(request, max_tokens=MORE_ROOM * request.max_tokens))
    if completion.finish_reason == CUT_OFF:
        raise PermanentError(f"cut off, even with {MORE_ROOM} times --teacher-max-tokens")
    if completion.finish_reason == FILTERED:
        raise PermanentError(BY_FILTER)
    if len(completion.text) > MORE_ROOM * MOST_CHARACTERS_PER_TOKEN * request.max_tokens:
        raise PermanentError("far longer than --teacher-max-tokens")
    return completion.text
