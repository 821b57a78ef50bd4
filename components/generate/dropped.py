"""Drafts that became no row: kept in `dropped.jsonl`, and shown where nothing else was made."""

from collections import Counter
from collections.abc import Sequence

from components.core.errors import DataError
from components.core.records import Dropped

MAX_EXAMPLES = 3

ADVICE = {
    "only reasoning": 'Turn thinking off with --teacher-extra \'{"chat_template_kwargs": '
    '{"enable_thinking": false}}\', or raise --teacher-max-tokens.',
    "cut off": "Raise --teacher-max-tokens, or turn thinking off with --teacher-extra.",
    "finish_reason": "Look for tools or limits of the endpoint, or give another.",
    "content filter": "Give another --teacher-model.",
    "HTTP": "Correct what the endpoint names; --teacher-extra adds fields to each request.",
    "quote": "Give a larger --teacher-model, lower --quote-similarity, or explain in an "
    "--answer-prompt of your own how to quote.",
    "none in the reply": "Give a larger --teacher-model, or a --question-prompt of your own.",
    "--teacher-max-cost": "Raise --teacher-max-cost.",
    "asked before": "Give more documents.",
    "evaluation question": "Give other documents, or other --eval-questions.",
    "": "Give a larger --teacher-model, or prompts of your own with --question-prompt and "
    "--answer-prompt.",
}
"""What to change, by words of the reason."""


def no_rows(what: str, path: str, reasons: Counter[str], examples: Sequence[Dropped]) -> DataError:
    """The error of a run that made nothing: the first replies, whole, and what to change."""
    replies = "".join(
        f"\n\n--- {dropped.chunk_id}: {dropped.reason}"
        + f"\nquestion: {dropped.question}" * bool(dropped.question)
        + f"\n{dropped.reply}" * bool(dropped.reply)
        for dropped in examples
    )
    most = max(reasons, key=lambda reason: reasons[reason], default="")
    advice = next(text for words, text in ADVICE.items() if words in most)
    return DataError(f"{what}; dropped: {dict(reasons)}{replies}", path=path, hint=advice)
