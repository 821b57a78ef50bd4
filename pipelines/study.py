"""The study for Kubeflow: several base models and LoRA settings on one dataset, side by side.

One dataset feeds all trials; a trial trains an adapter and evaluates it in all bit widths that
its arms name. Compiled by `raft compile` to pipelines/study.yaml.
"""

# kfp is untyped, and wants lists as defaults.
# mypy: allow-untyped-decorators
# ruff: noqa: B006, B008
from itertools import product
from typing import Any

from kfp import dsl

from components.eval.config import EvalConfig
from components.generate.config import GenerateConfig
from components.train.config import TrainConfig
from pipelines.component import component
from pipelines.hardware import Hardware, hardware_of_train
from pipelines.manifests import Jobs
from pipelines.steps import placed, reading
from pipelines.summary import compare, summary

generate, train = component("generate"), component("train")
quantize_check, evaluate = component("quantize-check"), component("eval")

BASE_MODELS = ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct")
SETTINGS = (
    {"rank": 16, "alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"rank": 64, "alpha": 64, "target_modules": ["all-linear"]},
)
TRIALS = [
    {"base_model": model, "learning_rate": TrainConfig.default("learning_rate"), **settings}
    for model, settings in product(BASE_MODELS, SETTINGS)
]
"""Every model with every setting. Written out, because a loop over a list of trials can collect
its results, and a loop in a loop cannot (kfp 2.17)."""


def pipeline(jobs: Jobs) -> Any:
    """The study, with every step on the hardware that its Job asks for."""
    asked = hardware_of_train(jobs)

    @dsl.pipeline(name="raft-study")
    def study(
        documents: str,
        questions: str,
        trials: list = TRIALS,  # type: ignore[type-arg]
        arms: list[str] = list(EvalConfig.default("arms")),
        teacher: str = GenerateConfig.default("teacher"),
        teacher_endpoint: str = GenerateConfig.default("teacher_endpoint"),
        teacher_model: str = GenerateConfig.default("teacher_model"),
        max_chunks: int = GenerateConfig.default("max_chunks"),
        epochs: float = TrainConfig.default("epochs"),
        max_questions: int = EvalConfig.default("max_questions"),
        seed: int = GenerateConfig.default("seed"),
        train_gpus: str = asked.train_gpus,
        memory: str = asked.memory,
        node_selector: dict = asked.node_selector,  # type: ignore[type-arg]
    ) -> None:
        """Compare base models, LoRA settings and bit widths on one dataset.

        Writes RAFT rows once, trains an adapter for every trial, scores each with its base model
        in 16 and in 4 bits on the same questions, and sets all of them side by side.

        Args:
            documents: Inputs. gs:// URI of the documents: a folder, or one file.
            questions: Inputs. gs:// URI of the evaluation questions, a JSON file in HotpotQA form.
            trials: Trials. As JSON; each needs base_model, rank, alpha, learning_rate and
                target_modules.
            arms: Arms. Model variants to compare, of base, raft, base-4bit and raft-4bit.
            teacher: Teacher. extractive (rules, no model, no cost) or openai (a chat endpoint).
            teacher_endpoint: Teacher. Base URL of the endpoint, such as http://teacher:8000/v1.
            teacher_model: Teacher. Name of the model at that endpoint.
            max_chunks: Rows. Ask about at most this many chunks, sampled by seed; 0 asks about all.
            epochs: Training. Passes over the rows, in every trial.
            max_questions: Evaluation. Ask at most this many questions, sampled by seed.
            seed: General. Seed of everything random, in all steps.
            train_gpus: Hardware. GPUs of each train step; all on one node.
            memory: Hardware. Memory of each train, quantize-check and eval step, such as 64Gi.
            node_selector: Hardware. Labels of the nodes for these steps, as JSON; the label
                cloud.google.com/gke-accelerator names the kind of GPU.
        """
        with dsl.ExitHandler(reading(summary(), jobs), name="run"):
            hardware = Hardware(train_gpus, memory, node_selector)
            generated = placed(
                generate(
                    documents=documents,
                    teacher=teacher,
                    teacher_endpoint=teacher_endpoint,
                    teacher_model=teacher_model,
                    max_chunks=max_chunks,
                    seed=seed,
                ),
                "generate",
                jobs,
            )

            with dsl.ParallelFor(trials, name="trials") as trial:
                trained = placed(
                    train(
                        dataset=generated.outputs["dataset"],
                        base_model=trial.base_model,
                        rank=trial.rank,
                        alpha=trial.alpha,
                        target_modules=trial.target_modules,
                        learning_rate=trial.learning_rate,
                        epochs=epochs,
                        seed=seed,
                    ),
                    "train",
                    jobs,
                    hardware,
                )
                quantized = placed(
                    quantize_check(
                        dataset=generated.outputs["dataset"],
                        base_model=trial.base_model,
                        adapter=trained.outputs["adapter"],
                        seed=seed,
                    ),
                    "quantize-check",
                    jobs,
                    hardware,
                )
                evaluated = placed(
                    evaluate(
                        questions=questions,
                        base_model=trial.base_model,
                        adapter=trained.outputs["adapter"],
                        quantization=quantized.outputs["quantization"],
                        arms=arms,
                        max_questions=max_questions,
                        seed=seed,
                    ),
                    "eval",
                    jobs,
                    hardware,
                )

            reading(compare(evaluations=dsl.Collected(evaluated.outputs["evaluation"])), jobs)

    return study
