"""What becomes of the demo's adapter in use: python tests/benchmarks/bench_use.py [RUN]

RUN is the folder of `raft demo` (run/demo). Prints how many of its first 20 questions `raft ask`
answers right with found quotes, with all paragraphs of questions.json as documents; how many of 80
other questions, on which its defaults were chosen, with them and without; and of 50
prompts, how many answers of the merged model differ from the adapter's, in 16 and in 4 bits, and,
where vLLM is installed, those of the server that `raft serve --run` starts from its evaluation's.
"""

import contextlib
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from components.core import decoding
from components.core.chat import render_question
from components.core.metrics import score
from components.core.models import load_tokenizer, load_tuned
from components.use import ask, merge
from components.use.config import AskConfig, MergeConfig
from pipelines.demo.demo import DISTRACTORS, DOCUMENTS, MODEL, QUESTIONS, UNSEEN_DOCUMENTS
from pipelines.demo.world import articles, write_questions
from tests.use.vllm_server import Asked, compare, serving

ASKED, CHOSEN_ON, PROMPTS, LIMIT = 20, 80, 50, 96
SETTINGS: list[dict[str, Any]] = [
    {}, {"order": "best-first"}, {"min_score": 0.5}, {"min_score": 0},
    {"min_score": 0, "order": "best-first"}, {"top_k": 2},
]  # fmt: skip


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "run/demo")
    questions = json.loads((run / "questions.json").read_text(encoding="utf-8"))
    asked = [
        (["".join(sentences) for _, sentences in row["context"]], row["question"])
        for row in questions[:PROMPTS]
    ]
    if importlib.util.find_spec("vllm"):
        with (
            tempfile.TemporaryDirectory() as scratch,
            serving(run / "adapter", MODEL, Path(scratch)) as url,
        ):
            differences = compare(url, run / "adapter", MODEL, asked, LIMIT)
        print(f"answers of the server that differ, of {PROMPTS}: {differences}")
        return
    print(f"right with found quotes: {_ask(run, run / 'questions.json', ASKED)} of {ASKED}")
    with tempfile.TemporaryDirectory() as scratch:
        others = Path(scratch) / "questions.json"
        known = {article.title for article in articles(DOCUMENTS, seed=0)}
        write_questions(articles(UNSEEN_DOCUMENTS, 22, known), QUESTIONS, DISTRACTORS, 21, others)
        for settings in SETTINGS:
            right = _ask(run, others, CHOSEN_ON, **settings)
            print(f"right with found quotes, other questions, {settings}: {right} of {CHOSEN_ON}")
    tuned = load_tuned(str(MODEL), str(run / "adapter"), torch.float32)
    expected = _answers(tuned, run / "adapter", asked)
    for bits in ("16", "4"):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "merged"
            merge.run(MergeConfig(base_model=str(MODEL), adapter=str(run / "adapter"), bits=bits,
                                  output=str(folder)))  # fmt: skip
            from transformers import AutoModelForCausalLM

            merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            found = _answers(merged, folder, asked)
        differ = sum(one != other for one, other in zip(found, expected, strict=True))
        print(f"answers of the model merged in {bits} bits that differ, of {PROMPTS}: {differ}")


def _ask(run: Path, file: Path, number: int, **settings: Any) -> int:
    """How many of a file's first questions are answered right, with quotes that documents have."""
    questions = json.loads(file.read_text(encoding="utf-8"))[:number]
    typed = "".join(f"{row['question']}\n" for row in questions)
    config = AskConfig(adapter=str(run / "adapter"), documents=str(file), **settings)
    stdin, sys.stdin = sys.stdin, io.StringIO(typed)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            answered = ask.run(config)
    finally:
        sys.stdin = stdin
    return sum(
        score(one.answer, row["answer"]).em == 1 and 0 < one.found == one.quotes
        for one, row in zip(answered, questions, strict=True)
    )


def _answers(model: object, tokenizer: Path, asked: list[Asked]) -> list[tuple[int, ...]]:
    loaded = load_tokenizer(str(MODEL), str(tokenizer))
    prompts = [render_question(loaded, documents, question) for documents, question in asked]
    ends = decoding.end_tokens(str(MODEL), loaded)
    batch = decoding.complete(model, loaded, prompts, max_new_tokens=LIMIT, ends=ends)
    return [completion.ids for completion in batch]


if __name__ == "__main__":
    main()
