"""Six arms through one `raft eval` beside six separate runs of the stock `lm_eval`, in one run.

Same questions, prompts, batches and limits; both as a user starts them, process start included.
The stock run in 4 bits gets a checkpoint that is made beforehand, outside the clock. The model is
the demo's, so what is shared (start, imports, questions) weighs more than with a large model.

Run it: python tests/benchmarks/bench_eval.py [questions]
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "pipelines" / "demo" / "model"
TASKS = REPOSITORY / "components" / "eval" / "tasks"
LIMIT, BATCH, PAIRS = 96, 16, 2


TARGETS: dict[str, dict[str, object]] = {
    "raft": {},
    "raft-no-reasoning": {"target": "answer"},
    "dsf": {"target": "answer", "keep_oracle": 0.0, "max_distractors": 0},
}
"""The adapters, by what they are trained on."""


def prepare(folder: Path, questions: int) -> dict[str, tuple[str, str]]:
    """Questions, adapters, and every arm as the stock harness takes it: its model, its prompt."""
    import torch

    from components.core.models import load_4bit, load_tokenizer
    from components.generate import generate
    from components.generate.config import GenerateConfig
    from components.train import train
    from components.train.config import TrainConfig
    from pipelines.demo.world import articles, write_documents, write_questions

    write_documents(articles(60, seed=7), folder / "documents")
    write_questions(articles(questions + 100, seed=8), questions, 3, 8, folder / "questions.json")
    generate.run(
        GenerateConfig(
            teacher="extractive",
            documents=str(folder / "documents"),
            output=str(folder / "dataset"),
        )
    )
    for name, target in TARGETS.items():
        settings = {
            "dataset": str(folder / "dataset"), "base_model": str(MODEL),
            "output": str(folder / name), "epochs": 1, "learning_rate": 2e-3,
            "gradient_accumulation": 1, "gradient_checkpointing": False,
        }  # fmt: skip
        train.run(TrainConfig.model_validate({**settings, **target}))
    quantized = folder / "raft-4bit"
    load_4bit(str(MODEL), str(folder / "raft"), torch.float32).save_pretrained(quantized)
    load_tokenizer(str(MODEL)).save_pretrained(quantized)
    tuned = {name: f"pretrained={MODEL},peft={folder / name}" for name in TARGETS}
    return {
        "base": (f"pretrained={MODEL}", "raft"),
        "base-rag": (f"pretrained={MODEL}", "rag"),
        "raft": (tuned["raft"], "raft"),
        "raft-no-reasoning": (tuned["raft-no-reasoning"], "raft"),
        "dsf-rag": (tuned["dsf"], "raft"),
        "raft-4bit": (f"pretrained={quantized}", "raft"),
    }


def seconds(*command: object) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        capture_output=True, text=True, cwd=REPOSITORY, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.perf_counter() - started


def ours(folder: Path, arms: dict[str, tuple[str, str]]) -> tuple[float, dict[str, float]]:
    output = folder / "evaluation"
    shutil.rmtree(output, ignore_errors=True)
    took = seconds(
        "pipelines", "eval", "--questions", folder / "questions.json", "--base-model", MODEL,
        "--adapters", ",".join(f"{name}={folder / name}" for name in TARGETS),
        "--arms", ",".join(arms), "--output", output, "--max-new-tokens", LIMIT,
        "--batch-size", BATCH, "--dtype", "float32", "--engine", "transformers",
    )  # fmt: skip
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return took, {arm["name"]: arm["f1"] for arm in results["arms"]}


def stock(folder: Path, arms: dict[str, tuple[str, str]]) -> tuple[float, dict[str, float]]:
    took, scores = 0.0, {}
    for name, (model, prompt) in arms.items():
        output = folder / "stock" / name
        shutil.rmtree(output, ignore_errors=True)
        took += seconds(
            "lm_eval", "run", "--include_path", TASKS, "--tasks", "hotpotqa",
            "--apply_chat_template", "--model", "hf", "--model_args", f"{model},dtype=float32",
            "--gen_kwargs", f"max_gen_toks={LIMIT}", "--batch_size", BATCH, "--device", "cpu",
            "--metadata",
            json.dumps({"questions": str(folder / "questions.json"), "prompt": prompt}),
            "--output_path", output,
        )  # fmt: skip
        (written,) = output.rglob("results_*.json")
        results = json.loads(written.read_text(encoding="utf-8"))["results"]
        scores[name] = results["hotpotqa"]["f1,none"]
    return took, scores


def main() -> None:
    questions = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arms = prepare(folder, questions)
        for number in range(1, PAIRS + 1):
            mine, our_f1 = ours(folder, arms)
            theirs, their_f1 = stock(folder, arms)
            equal = all(abs(our_f1[arm] - their_f1[arm]) < 1e-6 for arm in arms)
            print(
                f"pair {number}: raft eval {mine:.1f} s, six lm_eval {theirs:.1f} s: "
                f"{theirs / mine:.2f}x; same F1 in every arm: {equal}",
                flush=True,
            )


if __name__ == "__main__":
    main()
