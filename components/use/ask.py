"""`raft ask`: questions about documents, answered by an adapter that quotes them.

The chunks that fit a question best are found as in an evaluation (BM25) and shown in RAFT's form.
What the model writes appears as it is written; each quote is followed by the document that has it.
Texts of documents and models are hostile: no escape sequence of theirs reaches the terminal.
"""

import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from components.core.corpus.retriever import Retriever
from components.core.describe import counted
from components.core.errors import DataError, RaftError, for_terminal
from components.core.fingerprints import read_training
from components.core.progress import say
from components.core.quotes import places, split
from components.core.raft_form import QUOTE_BEGIN, find_answer, injected_markers, is_refusal
from components.core.records import Chunk
from components.use.answering import Answer, Reply, at_endpoint, with_transformers
from components.use.config import SHOWN, AskConfig

WAITING = re.compile(rf"{QUOTE_BEGIN}|##?[a-z_]*#?$")
"""What is not printed yet: a quote without its end, or what may become the marker of one."""


class Answered(NamedTuple):
    """What became of a question.

    answer: "" where none follows the marker. quotes: all; found: those that a document has. An
    answer with a quote that is not found is unsupported.
    """

    answer: str
    declined: bool
    quotes: int
    found: int


def run(config: AskConfig) -> list[Answered]:
    """Answer the question of `config`, or those that are typed.

    Raises:
        DataError: documents cannot be read, or none of them fits the question.
        ModelError: the adapter cannot be used, or the endpoint does not have it.
        TeacherError: the endpoint does not answer.
    """
    retriever = Retriever(config)
    documents = {chunk.document_id for chunk in retriever.chunks}
    say(f"  {counted(len(retriever.chunks), 'chunk')} of {counted(len(documents), 'document')}")
    answer = at_endpoint(config) if config.endpoint else with_transformers(config)
    if config.question:
        return [ask(config, retriever, answer, config.question)]
    answered = []
    if sys.stdin.isatty():
        say("  a question a line; an empty one ends")
    while question := _typed():
        try:
            answered.append(ask(config, retriever, answer, question))
        except RaftError as error:
            say(f"error: {error}\n  {error.hint}")
    return answered


def ask(config: AskConfig, retriever: Retriever, answer: Answer, question: str) -> Answered:
    """Show the answer to one question, and what its quotes are worth.

    Raises:
        DataError: no document fits the question.
    """
    chunks = []
    for chunk in retriever.best(question, config.top_k or _trained_with(config), config.min_score):
        if reason := injected_markers(chunk.text):
            say(f"  not shown: {chunk.id} {reason}")
        else:
            chunks.append(chunk)
    if not chunks:
        raise DataError(
            "no document has a word of the question",
            path=config.documents,
            hint="Ask in the documents' own words, or give other --documents.",
        )
    if config.order == "best-last":
        chunks.reverse()
    say("  shown: " + ", ".join(chunk.id for chunk in chunks))
    marker = Marker(chunks)
    reply = answer([chunk.text for chunk in chunks], question, marker.feed)
    marker.end()
    return _conclude(reply, marker)


class Marker:
    """Prints a text as it comes, each quote with the documents that have it."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = chunks
        self.quotes = self.found = 0
        self._rest = ""

    def feed(self, text: str) -> None:
        """Print what is certain of the text so far."""
        *pieces, self._rest = split(self._rest + text)
        for number, piece in enumerate(pieces):
            _print(self._quote(piece) if number % 2 else piece)
        waits = WAITING.search(self._rest)
        ready = waits.start() if waits else len(self._rest)
        _print(self._rest[:ready])
        self._rest = self._rest[ready:]

    def end(self) -> None:
        """Print the rest."""
        _print(self._rest + "\n")
        self._rest = ""

    def _quote(self, text: str) -> str:
        if not text.strip():
            return ""
        found = places(text, [chunk.text for chunk in self.chunks])
        self.quotes += 1
        self.found += bool(found)
        names = ", ".join(dict.fromkeys(self.chunks[place].document_id for place in found))
        return f"“{text.strip()}” [{f'found in {names}' if found else 'NOT FOUND'}]"


def _trained_with(config: AskConfig) -> int:
    """How many documents the adapter was trained to read at once."""
    training = read_training(config.adapter) if config.adapter else None
    return (training.documents_shown if training else 0) or SHOWN


def _conclude(reply: Reply, marker: Marker) -> Answered:
    answer, answered = find_answer(reply.text)
    declined = answered and is_refusal(answer)
    if declined:
        print("declined: the model finds no answer in the documents shown")
    elif answered:
        supported = marker.found == marker.quotes
        print(f"{'answer' if supported else 'unsupported answer'}: {for_terminal(answer)}")
    else:
        print("no answer" + ": cut off at --max-new-tokens" * reply.truncated)
    if marker.quotes:
        print(f"quotes: {marker.found} of {marker.quotes} found")
    elif not declined:
        print("quotes: none")
    print(flush=True)
    return Answered(answer if answered else "", declined, marker.quotes, marker.found)


def _typed() -> str:
    """The next question; "" at the end."""
    try:
        return input("? " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _print(text: str) -> None:
    print(for_terminal(text), end="", flush=True)
