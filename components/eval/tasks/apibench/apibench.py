"""The TorchHub part of the API bench: which call does what is wanted? A line, shortened:

    {"code": "###Instruction: What classifies videos?\\n###Output: {…}",
     "api_data": {"domain": "Video Classification", "api_call": "torch.hub.load(…)", …}}

An answer calls the first API whose arguments stand in a call of its syntax tree; it is right where
that API is of the domain asked for, and a hallucination where there is none. The APIs are those of
`--documents`. Source: Patil et al., 2023 (the rules of their `ast_eval_th.py`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from components.core.errors import ConfigError
from components.core.json_entries import fault_at, read_entries
from components.core.raft_form import find_answer
from components.core.records import explain
from components.eval.harness import right_or_wrong
from components.eval.questions import EvalExample

FORMAT = "The API bench's format is described at https://github.com/ShishirPatil/gorilla."
HUB = None
METRIC = "AST accuracy"
INSTRUCTION = re.compile(
    r"(?:###Instruction:|\{'Instruction':)\s*(.*?)(?:\n###Output|, 'Output')", re.DOTALL
)
IDENTIFYING = ("repo_or_dir", "model")
"""Arguments that tell APIs apart; also those in whose text these words are."""


class ApiData(BaseModel):
    """The documentation of the API that is asked for, all of which is shown."""

    model_config = ConfigDict(extra="allow")

    domain: str
    api_call: str


class Row(BaseModel):
    """What is read of a row."""

    code: str
    api_data: ApiData


class Api(NamedTuple):
    """What is called, with which arguments, and what it is for."""

    call: str
    function: bytes
    arguments: list[str]
    domain: str


def read(row: object) -> EvalExample:
    """A wish, with the documentation of the API that fulfils it."""
    item = Row.model_validate(row)
    instruction = INSTRUCTION.search(item.code)
    question = instruction[1].strip() if instruction else ""
    documentation = json.dumps(item.api_data.model_dump(), ensure_ascii=False)
    return EvalExample(
        id=question,
        question=question,
        answers=[item.api_data.api_call],
        documents=[documentation],
        golden=[0],
    )


def score(expected: Mapping[str, Any], generation: str) -> dict[str, float]:
    """Whether the answer calls an API of the right domain, or one that does not exist.

    Raises:
        ConfigError: `--documents` are not given.
    """
    answer = find_answer(generation)[0]
    text = generation if "api_call" in generation else f"api_call: {answer}"
    apis = read_apis(str(expected["corpus"]))
    domain = next((api.domain for api in apis if api.call == expected["answers"][0]), "")
    right, invented = judge(text, domain, apis)
    return {**right_or_wrong(right, expected, generation), "hallucination": float(invented)}


def judge(text: str, domain: str, apis: Sequence[Api]) -> tuple[bool, bool]:
    """Whether a reply is correct, and whether it is a hallucination, by the official rules.

    What stands between the first `api_call` and `api_provider` is read; without it a reply is
    neither.
    """
    _, marker, rest = text.partition("api_call")
    if not marker:
        return False, False
    part = rest.partition("api_call")[0].partition("api_provider")[0]
    start = max(part.find(":"), 0)
    end = part.rfind(")") + 1 or len(part) - 1
    nodes = _nodes(part[start + 2 : end])
    for api in apis:
        called = (node for node in nodes if node.children and node.children[0].text == api.function)
        code = next(called, nodes[-1]).text.decode()
        if api.arguments and all(argument in code for argument in api.arguments):
            return api.domain == domain, False
    return False, True


@cache
def read_apis(location: str) -> tuple[Api, ...]:
    """The APIs of a file of their documentation, in its order.

    Raises:
        ConfigError: no file is given.
        DataError: it cannot be read, or a row has no call.
    """
    if not location:
        raise ConfigError(
            "--task apibench: --documents is missing, the file of the APIs that exist",
            hint="Add --documents torchhub_api.jsonl, and --retrieve bm25:5 to have them shown.",
        )
    path = Path(location)
    kind, rows = read_entries(path, hint=FORMAT)
    apis = []
    for number, row in rows:
        try:
            documented = ApiData.model_validate(row)
        except ValidationError as error:
            raise fault_at(path, kind, number, explain(error), hint=FORMAT) from None
        call = _nodes(documented.api_call)[0].children[0].children[0]
        identifying = [
            argument.children[2].text.decode().strip("'")
            for argument in (call.children[1].children if call.children else ())
            if any(name in argument.text.decode() for name in IDENTIFYING)
        ]
        function = call.children[0].text if call.children else b""
        apis.append(Api(documented.api_call, function, identifying, documented.domain))
    return tuple(apis)


def _nodes(code: str) -> list[Any]:
    """The nodes of a syntax tree that have children, and the root, as the official script goes."""
    import tree_sitter
    import tree_sitter_python

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_python.language()))
    stack, nodes = [parser.parse(code.encode()).root_node], []
    while stack:
        nodes.append(stack.pop())
        stack += [child for child in nodes[-1].children if child.children]
    return nodes
