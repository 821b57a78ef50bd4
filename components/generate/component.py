"""The generate stage as a Kubeflow component: declaration only.

The image named here is the one that a checkout builds; in the pipeline the Job manifest's `image:`
line replaces it (see pipelines/manifests.py).
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from importlib.metadata import version

from kfp import dsl

from components.generate.config import GenerateConfig


@dsl.container_component
def generate(
    documents: str,
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
    chunk_tokens: int = GenerateConfig.default("chunk_tokens"),
    tokenizer: str = GenerateConfig.default("tokenizer"),
    max_chunks: int = GenerateConfig.default("max_chunks"),
    teacher: str = GenerateConfig.default("teacher"),
    teacher_endpoint: str = GenerateConfig.default("teacher_endpoint"),
    teacher_model: str = GenerateConfig.default("teacher_model"),
    teacher_concurrency: int = GenerateConfig.default("teacher_concurrency"),
    teacher_max_tokens: int = GenerateConfig.default("teacher_max_tokens"),
    teacher_timeout: float = GenerateConfig.default("teacher_timeout"),
    questions_per_chunk: int = GenerateConfig.default("questions_per_chunk"),
    distractors: int = GenerateConfig.default("distractors"),
    oracle_probability: float = GenerateConfig.default("oracle_probability"),
    validation_fraction: float = GenerateConfig.default("validation_fraction"),
    seed: int = GenerateConfig.default("seed"),
) -> dsl.ContainerSpec:
    """Write RAFT rows: questions about documents, answered from an oracle among distractors.

    Args:
        documents: gs:// URI of the documents: a folder, or one file.
        dataset: Training and validation rows, a dataset card, a report of what was dropped.
        card: The dataset card, to read on the run's page.
        chunk_tokens: Most tokens in a chunk, the piece of a document that a question is about.
        tokenizer: What counts those tokens: an OpenAI model name, or a tokenizer folder.
        max_chunks: Ask about at most this many chunks, sampled by seed; 0 asks about all.
        teacher: extractive (rules, no model, no cost) or openai (a chat endpoint).
        teacher_endpoint: Base URL of the chat endpoint, such as http://teacher:8000/v1.
        teacher_model: Name of the model at that endpoint.
        teacher_concurrency: Requests to the endpoint under way at once.
        teacher_max_tokens: Most tokens in one answer of the teacher.
        teacher_timeout: Seconds to wait for one answer.
        questions_per_chunk: Questions that the teacher writes about a chunk.
        distractors: Other chunks shown beside the oracle chunk.
        oracle_probability: Share of rows, 0 to 1, that keep the oracle chunk (the paper's P).
        validation_fraction: Share of documents, 0 to 0.5, whose rows are kept out of training.
        seed: Seed of sampling and shuffling: same documents and seed, same rows.
    """
    return dsl.ContainerSpec(
        image=f"raft-generate:{version('raft-pipelines')}",
        command=["raft", "generate"],
        args=[
            "--documents", documents,
            "--chunk-tokens", chunk_tokens,
            "--tokenizer", tokenizer,
            "--max-chunks", max_chunks,
            "--teacher", teacher,
            "--teacher-endpoint", teacher_endpoint,
            "--teacher-model", teacher_model,
            "--teacher-concurrency", teacher_concurrency,
            "--teacher-max-tokens", teacher_max_tokens,
            "--teacher-timeout", teacher_timeout,
            "--questions-per-chunk", questions_per_chunk,
            "--distractors", distractors,
            "--oracle-probability", oracle_probability,
            "--validation-fraction", validation_fraction,
            "--seed", seed,
            "--output", dataset.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
