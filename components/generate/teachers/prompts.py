"""The prompts of a run: the built-in ones, or the user's."""

import json
from pathlib import Path
from string import Template

from components.core.chat_protocol import Request
from components.core.config import flag
from components.core.errors import ConfigError
from components.core.progress import say
from components.core.records import Chunk
from components.generate.config import GenerateConfig

FOLDER = Path(__file__).parents[1] / "prompts"
PLACEHOLDERS = {"question": {"chunk", "count"}, "answer": {"chunk", "question"}}
SCHEMA = json.dumps({
    "type": "object",
    "properties": {"questions": {"type": "array", "items": {"type": "string"}}},
    "required": ["questions"],
    "additionalProperties": False,
})  # fmt: skip


class Prompts:
    """Makes requests about chunks, which are texts or the documentation of API calls."""

    def __init__(self, config: GenerateConfig) -> None:
        """Read the prompts.

        Raises:
            ConfigError: a file cannot be read, or its placeholders are not those it must have.
        """
        self.config = config
        self.templates: dict[tuple[str, str], Template] = {}
        openings = set()
        for name in PLACEHOLDERS:
            own = getattr(config, f"{name}_prompt")
            for kind, builtin in (("general", f"{name}.md"), ("api call", f"{name}_api.md")):
                template = _read(Path(own or FOLDER / builtin), name)
                self.templates[name, kind] = template
            general = self.templates[name, "general"].template
            openings.add(general.replace("${chunk}", "$chunk").partition("$chunk")[0])
        if len(openings) > 1:
            say("  the two prompts differ before $chunk: no prefix cache can serve the second")

    def for_questions(self, chunk: Chunk) -> Request:
        """Asks for questions about a chunk, as JSON where the teacher can keep to a schema."""
        return self._request("question", chunk, SCHEMA, count=self.config.questions_per_chunk)

    def for_answer(self, chunk: Chunk, question: str) -> Request:
        """Asks for a quoting, reasoned answer to one question."""
        return self._request("answer", chunk, question=question)

    def _request(self, name: str, chunk: Chunk, schema: str = "", **values: object) -> Request:
        prompt = self.templates[name, chunk.type].substitute(chunk=chunk.text, **values)
        config = self.config
        return Request(
            prompt, config.teacher_model, config.teacher_max_tokens, config.seed, schema=schema
        )


def _read(path: Path, name: str) -> Template:
    place = f"{flag(f'{name}_prompt')} {path}"
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{place}: cannot be read ({error})", hint="Give a UTF-8 text file."
        ) from error
    if not template.is_valid():
        raise ConfigError(
            f"{place}: a $ that begins no placeholder", hint="Write $$ for a dollar sign."
        )
    needed, present = PLACEHOLDERS[name], set(template.get_identifiers())
    faults = [f"lacks ${placeholder}" for placeholder in sorted(needed - present)]
    faults += [f"does not know ${placeholder}" for placeholder in sorted(present - needed)]
    if faults:
        names = " and ".join(f"${placeholder}" for placeholder in sorted(needed))
        raise ConfigError(
            f"{place}: {', '.join(faults)}",
            hint=f"A prompt holds {names}, and no other placeholder; $$ is a dollar sign.",
        )
    return template
