"""Learning rates for few rows: the table that train's default was chosen from.

SmolLM2-135M is trained for one epoch on rows that are questions of HotpotQA's
`dev_distractor.json`: a row shows the supporting sentences alone, and its answer quotes them. So
rows are short, and a core manages several trainings. Other questions of the file judge each adapter
in the same form.

Run it: python tests/benchmarks/bench_recipe.py FOLDER [rows …]

FOLDER keeps what is made; a training that is there is judged again. Needs what bench_gate.py needs.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_gate import HOTPOTQA, finished, smollm2

ROWS = (100, 250)
RATES = (1e-3, 2e-4, 3e-3)
VALIDATION, JUDGED = 16, 125
MAX_NEW_TOKENS = 96


def read_rows() -> list[Any]:
    """Rows made of the questions, those with the shortest supporting sentences first.

    The first, with which the smaller training begins, are in an order by chance.
    """
    import random

    from components.core.json_entries import read_entries
    from components.core.raft_form import ANSWER_MARKER, QUOTE_BEGIN, QUOTE_END, instruction
    from components.core.records import Question, RaftRow

    rows = []
    for _, entry in read_entries(HOTPOTQA / "dev_distractor.json", hint="")[1]:
        question = Question.model_validate(entry)
        text = " ".join(sentence.strip() for sentence in question.supporting_sentences())
        rows.append(
            RaftRow(
                id=question.id, question=question.question, oracle_context=text,
                context={"title": [[""]], "sentences": [[text]]},
                cot_answer=f"{QUOTE_BEGIN}{text}{QUOTE_END}\n{ANSWER_MARKER} {question.answer}",
                instruction=instruction([text], question.question), answer=question.answer,
            )
        )  # fmt: skip
    rows.sort(key=lambda row: len(row.oracle_context))
    first = rows[: JUDGED + VALIDATION + min(ROWS)]
    random.Random(0).shuffle(first)
    return first + rows[len(first) :]


def write_dataset(folder: Path, rows: list[Any], number: int) -> Path:
    """A dataset that holds so many training rows, and the same validation rows as the others."""
    output = folder / f"dataset-{number}"
    output.mkdir(parents=True, exist_ok=True)
    others = rows[JUDGED:]
    for name, part in (
        ("train", others[VALIDATION : VALIDATION + number]),
        ("validation", others[:VALIDATION]),
    ):
        lines = (row.model_dump_json() + "\n" for row in part)
        (output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return output


def judge(base: Path, adapter: Path, rows: list[Any]) -> tuple[float, tuple[float, float], float]:
    """F1 with its interval, and the share of answers that do not end."""
    import torch
    from peft import PeftModel

    from components.core.chat import render_prompt
    from components.core.decoding import complete, end_tokens
    from components.core.metrics import score
    from components.core.models import load_model, load_tokenizer
    from components.core.raft_form import find_answer
    from components.core.statistics import mean, mean_interval

    tokenizer = load_tokenizer(str(base), str(adapter))
    tuned = PeftModel.from_pretrained(load_model(str(base), torch.float32), str(adapter))
    model = tuned.merge_and_unload().to(torch.bfloat16).eval()
    prompts = [render_prompt(tokenizer, row.instruction) for row in rows]
    ends = end_tokens(str(base), tokenizer)
    answers = complete(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, ends=ends)
    scores = [
        score(find_answer(answer.text)[0], row.answer).f1
        for answer, row in zip(answers, rows, strict=True)
    ]
    cut_off = sum(answer.truncated for answer in answers) / len(answers)
    return mean(scores), mean_interval(scores, 0), cut_off


def trained(folder: Path, rows: list[Any], number: int, rate: float) -> Path:
    """The adapter's folder."""
    from components.train import train
    from components.train.config import TrainConfig

    base, adapter = smollm2(folder / "smollm2"), folder / f"adapter-{number}-{rate:g}"
    if not finished(adapter):
        train.run(
            TrainConfig(
                dataset=str(write_dataset(folder, rows, number)), base_model=str(base),
                output=str(adapter), gradient_checkpointing=False, dtype="bfloat16",
                epochs=1, learning_rate=rate,
            )
        )  # fmt: skip
    return adapter


def measure(folder: Path, rows: list[Any], number: int, rate: float) -> str:
    """A row of the table."""
    from components.core.records import TrainingRecord, read_json

    base, adapter = folder / "smollm2", trained(folder, rows, number, rate)
    record = read_json(adapter / TrainingRecord.FILE, TrainingRecord)
    f1, (low, high), cut_off = judge(base, adapter, rows[:JUDGED])
    before, after = (point.loss for point in record.curve if point.split == "validation")
    return (
        f"| {number} | {rate:g} | {record.steps} | {before:.3f} | {after:.3f} "
        f"| {f1:.3f} ({low:.3f} – {high:.3f}) | {cut_off:.0%} |"
    )


HEADING = f"""
| rows | learning rate | steps | validation loss before | after | F1 of {JUDGED} (95 %) | cut off |
|---|---|---|---|---|---|---|"""


def main() -> None:
    folder, *numbers = sys.argv[1:]
    rows, place = read_rows(), Path(folder).resolve()
    wanted = list(product(map(int, numbers) if numbers else ROWS, RATES))
    for number, rate in wanted:
        trained(place, rows, number, rate)
    print(HEADING)
    for number, rate in wanted:
        print(measure(place, rows, number, rate), flush=True)


if __name__ == "__main__":
    main()
