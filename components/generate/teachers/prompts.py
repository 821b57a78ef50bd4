"""The prompts for a teacher: those of `generate/prompts`, or the user's."""

import json
from dataclasses import replace
from pathlib import Path
from string import Template

from components.core.chat_protocol import Request
from components.core.config import flag
from components.core.errors import ConfigError
from components.core.records import Chunk
from components.generate.config import GenerateConfig

FOLDER = Path(__file__).parents[1] / "prompts"
PLACEHOLDERS = {"question": {"chunk", "count"}, "answer": {"chunk", "question"}}
EXPLAIN = "Explain how the text leads to this answer, and end with it, word for word:"
AS_JSON = (
    'Reply with one JSON object and nothing else: {{"questions": ["…"]}}, with at most {count} in '
    "the list."
)
AS_LINES = {
    "general": "Write one question a line, at most {count}, and nothing else.",
    "api call": "Write one instruction a line, as a numbered list, at most {count}, and nothing "
    "else.",
}


class Prompts:
    """Makes requests about chunks, which are texts or the documentation of API calls."""

    def __init__(self, config: GenerateConfig) -> None:
        """Read the prompts.

        Raises:
            ConfigError: a file cannot be read, or its placeholders are not those it must have.
        """
        self.config = config
        self.extra = json.dumps(config.teacher_extra, sort_keys=True) * bool(config.teacher_extra)
        self.templates: dict[tuple[str, str], Template] = {}
        for name in PLACEHOLDERS:
            own = getattr(config, f"{name}_prompt")
            for kind, builtin in (("general", f"{name}.md"), ("api call", f"{name}_api.md")):
                self.templates[name, kind] = _read(Path(own or FOLDER / builtin), name)

    def for_questions(self, chunk: Chunk, count: int, *, as_json: bool) -> Request:
        """Asks for questions about a chunk, as JSON that keeps to a schema, or as lines.

        The prompt, the user's too, ends in a sentence that asks for the same as the schema.
        """
        form = (AS_JSON if as_json else AS_LINES[chunk.type]).format(count=count)
        request = self._request("question", chunk, count=count)
        prompt = f"{request.prompt.rstrip()} {form}\n"
        return replace(request, prompt=prompt, schema=_schema(count) if as_json else "")

    def for_answer(self, chunk: Chunk, question: str) -> Request:
        """Asks for a quoting, reasoned answer to one question."""
        if chunk.gold:
            question = f"{question}\n\n{EXPLAIN} {chunk.gold.answer}"
        return self._request("answer", chunk, question=question)

    def _request(self, name: str, chunk: Chunk, **values: object) -> Request:
        prompt = self.templates[name, chunk.type].substitute(chunk=chunk.text, **values)
        config = self.config
        return Request(
            prompt, config.teacher_model, config.teacher_max_tokens, config.seed, extra=self.extra
        )


def _schema(count: int) -> str:
    """The JSON schema of at most so many questions."""
    questions = {"type": "array", "items": {"type": "string"}, "maxItems": count}
    return json.dumps({
        "type": "object",
        "properties": {"questions": questions},
        "required": ["questions"],
        "additionalProperties": False,
    })  # fmt: skip


def _read(path: Path, name: str) -> Template:
    place = f"{flag(f'{name}_prompt')} {path}"
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{place}: cannot be read ({error})", hint="Give a UTF-8 text file."
        ) from error
    needed, present = PLACEHOLDERS[name], set(template.get_identifiers())
    faults = [] if template.is_valid() else ["has a $ that begins no placeholder"]
    faults += [f"lacks ${placeholder}" for placeholder in sorted(needed - present)]
    faults += [f"does not know ${placeholder}" for placeholder in sorted(present - needed)]
    if faults:
        names = " and ".join(f"${placeholder}" for placeholder in sorted(needed))
        raise ConfigError(
            f"{place}: {', '.join(faults)}",
            hint=f"A prompt holds {names}, and no other placeholder; $$ is a dollar sign.",
        )
    return template
