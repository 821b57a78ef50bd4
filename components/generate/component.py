"""The generate stage as a Kubeflow component: declaration only.

The image named here is the one that a checkout builds; in the pipeline the Job manifest's `image:`
line replaces it (see pipelines/hardware.py).
"""

# kfp is untyped.
# mypy: allow-untyped-decorators
from importlib.metadata import version
from typing import List  # noqa: UP035 (kfp knows no other spelling)

from kfp import dsl

from components.generate.config import GenerateConfig


@dsl.container_component
def generate(
    documents: str,
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
    text_field: str = GenerateConfig.default("text_field"),
    on_bad_document: str = GenerateConfig.default("on_bad_document"),
    max_document_mb: int = GenerateConfig.default("max_document_mb"),
    document_timeout: float = GenerateConfig.default("document_timeout"),
    document_memory_mb: int = GenerateConfig.default("document_memory_mb"),
    eval_questions: str = GenerateConfig.default("eval_questions"),
    chunk_tokens: int = GenerateConfig.default("chunk_tokens"),
    chunk_overlap: int = GenerateConfig.default("chunk_overlap"),
    min_chunk_tokens: int = GenerateConfig.default("min_chunk_tokens"),
    tokenizer: str = GenerateConfig.default("tokenizer"),
    max_chunks: int = GenerateConfig.default("max_chunks"),
    teacher: str = GenerateConfig.default("teacher"),
    teacher_endpoint: str = GenerateConfig.default("teacher_endpoint"),
    teacher_model: str = GenerateConfig.default("teacher_model"),
    teacher_concurrency: int = GenerateConfig.default("teacher_concurrency"),
    teacher_max_tokens: int = GenerateConfig.default("teacher_max_tokens"),
    teacher_timeout: float = GenerateConfig.default("teacher_timeout"),
    teacher_requests_per_minute: int = GenerateConfig.default("teacher_requests_per_minute"),
    teacher_tokens_per_minute: int = GenerateConfig.default("teacher_tokens_per_minute"),
    responses: str = GenerateConfig.default("responses"),
    question_prompt: str = GenerateConfig.default("question_prompt"),
    answer_prompt: str = GenerateConfig.default("answer_prompt"),
    questions_per_chunk: int = GenerateConfig.default("questions_per_chunk"),
    distractors: int = GenerateConfig.default("distractors"),
    distractor_choice: str = GenerateConfig.default("distractor_choice"),
    quote_similarity: float = GenerateConfig.default("quote_similarity"),
    oracle_probability: float = GenerateConfig.default("oracle_probability"),
    validation_fraction: float = GenerateConfig.default("validation_fraction"),
    shard: str = GenerateConfig.default("shard"),
    seed: int = GenerateConfig.default("seed"),
) -> dsl.ContainerSpec:
    """Write RAFT rows: questions about documents, answered from an oracle among distractors.

    Args:
        documents: gs:// URI of the documents: a folder, or one file.
        dataset: Training and validation rows, a dataset card, a report of what was dropped.
        card: The dataset card, to read on the run's page.
        text_field: Field of JSON rows that holds a document's text.
        on_bad_document: stop, or skip: leave out and count documents that cannot be read.
        max_document_mb: Megabytes of a document, and of its text.
        document_timeout: Seconds to read and cut one document.
        document_memory_mb: Megabytes of memory to read and cut one document in.
        eval_questions: gs:// URI of the questions that will test the model; no row gives them away.
        chunk_tokens: Most tokens in a chunk, the piece of a document that a question is about.
        chunk_overlap: Tokens that a chunk repeats of the one before.
        min_chunk_tokens: Chunks with fewer tokens are left out.
        tokenizer: What counts those tokens: an OpenAI model name, or a tokenizer folder.
        max_chunks: Ask about at most this many chunks, sampled by seed; 0 asks about all.
        teacher: extractive (rules, no model, no cost) or openai (a chat endpoint).
        teacher_endpoint: Base URL of the chat endpoint, such as http://teacher:8000/v1.
        teacher_model: Name of the model at that endpoint.
        teacher_concurrency: Requests to the endpoint under way at once.
        teacher_max_tokens: Most tokens in one answer of the teacher.
        teacher_timeout: Seconds to wait for one answer.
        teacher_requests_per_minute: Most requests a minute; 0 sets no limit.
        teacher_tokens_per_minute: Most tokens a minute, in and out; 0 sets no limit.
        responses: gs:// URI that keeps every paid response; empty: beside the dataset.
        question_prompt: gs:// URI of a prompt of your own for questions.
        answer_prompt: gs:// URI of a prompt of your own for answers.
        questions_per_chunk: Questions that the teacher writes about a chunk.
        distractors: Other chunks shown beside the oracle chunk.
        distractor_choice: random: any other chunks; bm25: those whose words fit the question best.
        quote_similarity: How like a passage, 0.5 to 1, a quote must be to be mended.
        oracle_probability: Share of rows, 0 to 1, that keep the oracle chunk (the paper's P).
        validation_fraction: Share of documents, 0 to 0.5, whose rows are kept out of training.
        shard: Which share of the chunks this step asks about, such as 2/8.
        seed: Seed of sampling and shuffling: same documents and seed, same rows.
    """
    return dsl.ContainerSpec(
        image=f"raft-generate:{version('raft-pipelines')}",
        command=["raft", "generate"],
        args=[
            "--documents", documents,
            "--text-field", text_field,
            "--on-bad-document", on_bad_document,
            "--max-document-mb", max_document_mb,
            "--document-timeout", document_timeout,
            "--document-memory-mb", document_memory_mb,
            "--eval-questions", eval_questions,
            "--chunk-tokens", chunk_tokens,
            "--chunk-overlap", chunk_overlap,
            "--min-chunk-tokens", min_chunk_tokens,
            "--tokenizer", tokenizer,
            "--max-chunks", max_chunks,
            "--teacher", teacher,
            "--teacher-endpoint", teacher_endpoint,
            "--teacher-model", teacher_model,
            "--teacher-concurrency", teacher_concurrency,
            "--teacher-max-tokens", teacher_max_tokens,
            "--teacher-timeout", teacher_timeout,
            "--teacher-requests-per-minute", teacher_requests_per_minute,
            "--teacher-tokens-per-minute", teacher_tokens_per_minute,
            "--responses", responses,
            "--question-prompt", question_prompt,
            "--answer-prompt", answer_prompt,
            "--questions-per-chunk", questions_per_chunk,
            "--distractors", distractors,
            "--distractor-choice", distractor_choice,
            "--quote-similarity", quote_similarity,
            "--oracle-probability", oracle_probability,
            "--validation-fraction", validation_fraction,
            "--shard", shard,
            "--seed", seed,
            "--output", dataset.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip


@dsl.container_component
def merge(
    shards: dsl.Input[List[dsl.Dataset]],  # noqa: UP006
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
) -> dsl.ContainerSpec:
    """Join the datasets that several generate steps wrote: the rows of a single one.

    Args:
        shards: Datasets of all shards.
        dataset: Training and validation rows, a dataset card, a report of what was dropped.
        card: The dataset card, to read on the run's page.
    """
    return dsl.ContainerSpec(
        image=f"raft-generate:{version('raft-pipelines')}",
        command=["raft", "merge"],
        args=[
            "--output", dataset.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )  # fmt: skip
