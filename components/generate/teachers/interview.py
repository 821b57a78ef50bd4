"""What is asked about a chunk, in which order, and what becomes of the replies.

One function, `interview`, knows it for every paid teacher: it hands out requests and is sent
their replies, so the one teacher may have hundreds of calls under way and the other a batch on a
GPU. Two requests a row: one for the questions, one for each answer. Both prompts open with the
same words and the chunk, so a prefix cache serves the second.
"""

import json
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Self

from components.core.config import flag
from components.core.errors import ConfigError
from components.core.progress import say
from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.questions import parse_questions
from components.generate.teachers.responses import Reply, Request
from components.generate.teachers.teacher import Draft

PROMPTS = Path(__file__).parents[1] / "prompts"
PLACEHOLDERS = {"question_prompt": {"chunk", "count"}, "answer_prompt": {"chunk", "question"}}
CUT_OFF = "length"
REFUSED = "content_filter"
MORE_ROOM = 2  # times --teacher-max-tokens, for the second try of a reply that was cut off
MOST_CHARACTERS_PER_TOKEN = 40  # of a reply; what is longer did not keep to the room it was given

Interview = Generator[list[Request], list[Reply | str], list[Draft]]
"""Yields requests that may run at once; is sent for each its reply, or why there is none."""


def interview(chunk: Chunk, prompts: "Prompts") -> Interview:
    """Ask for questions about a chunk, then for an answer to each."""
    (reply,) = yield from _with_room([prompts.for_questions(chunk)])
    if isinstance(reply, str):
        return [Draft(fault=f"questions: {reply}")]
    questions = parse_questions(reply.text, prompts.config.questions_per_chunk, chunk.type)
    if not questions:
        return [Draft(fault="questions: none in the reply")]
    replies = yield from _with_room([prompts.for_answer(chunk, asked) for asked in questions])
    return [
        Draft(question=question, fault=f"answer: {reply}")
        if isinstance(reply, str)
        else Draft(question=question, cot_answer=reply.text.strip())
        for question, reply in zip(questions, replies, strict=True)
    ]


def _with_room(
    requests: list[Request],
) -> Generator[list[Request], list[Reply | str], list[Reply | str]]:
    """Ask, and ask those that were cut off once more with more room."""
    replies = yield requests
    cut = [index for index, reply in enumerate(replies) if _finish(reply) == CUT_OFF]
    if cut:
        longer = yield [
            replace(requests[index], max_tokens=MORE_ROOM * requests[index].max_tokens)
            for index in cut
        ]
        for index, reply in zip(cut, longer, strict=True):
            replies[index] = reply
    most = MORE_ROOM * MOST_CHARACTERS_PER_TOKEN * max(each.max_tokens for each in requests)
    reasons = {
        CUT_OFF: f"cut off, even with {MORE_ROOM} times --teacher-max-tokens",
        REFUSED: "refused by the content filter",
    }
    return [
        "far longer than --teacher-max-tokens"
        if isinstance(reply, Reply) and len(reply.text) > most
        else reasons.get(_finish(reply), reply)
        for reply in replies
    ]


def _finish(reply: Reply | str) -> str:
    return reply if isinstance(reply, str) else reply.finish_reason


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run, by what a chunk is: a text, or the documentation of an API call."""

    config: GenerateConfig
    question: dict[str, Template]
    answer: dict[str, Template]

    @classmethod
    def load(cls, config: GenerateConfig) -> Self:
        """The built-in prompts, or the user's.

        Raises:
            ConfigError: a file cannot be read, or its placeholders are not those it must have.
        """
        found: dict[str, dict[str, Template]] = {}
        for setting, stem in (("question_prompt", "question"), ("answer_prompt", "answer")):
            own = getattr(config, setting)
            files = {
                "general": Path(own or PROMPTS / f"{stem}.md"),
                "api call": Path(own or PROMPTS / f"{stem}_api.md"),
            }
            found[stem] = {kind: _template(path, setting) for kind, path in files.items()}
        openings = {
            found[stem]["general"].template.replace("${chunk}", "$chunk").partition("$chunk")[0]
            for stem in found
        }
        if len(openings) > 1:
            say("  the two prompts differ before $chunk: no prefix cache can serve the second")
        return cls(config, found["question"], found["answer"])

    def for_questions(self, chunk: Chunk) -> Request:
        """Asks for questions about a chunk, as JSON where the teacher can keep to a schema."""
        count = self.config.questions_per_chunk
        text = self.question[chunk.type].substitute(chunk=chunk.text, count=count)
        schema = {
            "type": "object",
            "properties": {"questions": {"type": "array", "items": {"type": "string"}}},
            "required": ["questions"],
            "additionalProperties": False,
        }
        form = json.dumps(schema, sort_keys=True)
        return replace(self._request(text), schema=form, purpose="questions")

    def for_answer(self, chunk: Chunk, question: str) -> Request:
        """Asks for a quoting, reasoned answer to one question."""
        return self._request(
            self.answer[chunk.type].substitute(chunk=chunk.text, question=question)
        )

    def _request(self, prompt: str) -> Request:
        config = self.config
        return Request(prompt, config.teacher_model, config.teacher_max_tokens, config.seed)


def _template(path: Path, setting: str) -> Template:
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{flag(setting)} {path}: cannot be read ({error})", hint="Give a UTF-8 text file."
        ) from None
    if not template.is_valid():
        raise ConfigError(
            f"{flag(setting)} {path}: a $ that begins no placeholder",
            hint="Write $$ for a dollar sign.",
        )
    needed, there = PLACEHOLDERS[setting], set(template.get_identifiers())
    faults = [f"lacks ${name}" for name in sorted(needed - there)]
    faults += [f"does not know ${name}" for name in sorted(there - needed)]
    if faults:
        names = " and ".join(f"${name}" for name in sorted(needed))
        raise ConfigError(
            f"{flag(setting)} {path}: {', '.join(faults)}",
            hint=f"A prompt holds {names}, and no other placeholder; $$ is a dollar sign.",
        )
    return template
