"""The RAFT pipeline for Kubeflow: wiring only.

What a step runs is declared in its component, what it needs of the cluster in its Job manifest.
Compiled by `raft compile` to pipelines/raft.yaml, which is what one uploads.
"""

# kfp is untyped, and wants lists as defaults.
# mypy: allow-untyped-decorators
from typing import Any

from kfp import dsl

from components.eval.component import eval as evaluate
from components.eval.config import EvalConfig
from components.generate.component import generate, merge
from components.generate.config import GenerateConfig
from components.quantize_check.component import quantize_check
from components.quantize_check.config import QuantizeCheckConfig
from components.train.component import train
from components.train.config import TrainConfig
from pipelines.hardware import Hardware, hardware_of_train
from pipelines.manifests import Jobs
from pipelines.steps import placed, reading
from pipelines.summary import summary


def pipeline(jobs: Jobs, shards: int = 1) -> Any:
    """The pipeline, with every step on the hardware that its Job asks for.

    Args:
        jobs: Job manifests by stage.
        shards: how many pods write rows side by side.
    """
    asked = hardware_of_train(jobs)

    # A pipeline of its own, because kfp.local cannot see another step's output in a condition
    # beside it; handed in as a parameter it can, and a cluster does the same with both.
    @dsl.pipeline(name="gated-eval")
    def gated_eval(
        decision: str,
        questions: str,
        base_model: str,
        max_questions: int,
        seed: int,
        memory: str,
        node_selector: dict,  # type: ignore[type-arg]
        adapter: dsl.Input[dsl.Model],
        quantization: dsl.Input[dsl.Artifact],
    ) -> None:
        """Evaluate, unless quantize-check decided to stop."""
        with dsl.If(decision == "go", name="gate"):
            placed(
                evaluate(
                    questions=questions,
                    base_model=base_model,
                    adapter=adapter,
                    quantization=quantization,
                    max_questions=max_questions,
                    seed=seed,
                ),
                "eval",
                jobs,
                Hardware(memory=memory, node_selector=node_selector),
            )

    @dsl.pipeline(name="raft")
    def raft(
        documents: str,
        questions: str,
        base_model: str = "meta-llama/Llama-3.1-8B-Instruct",
        teacher: str = GenerateConfig.default("teacher"),
        teacher_endpoint: str = GenerateConfig.default("teacher_endpoint"),
        teacher_model: str = GenerateConfig.default("teacher_model"),
        chunk_tokens: int = GenerateConfig.default("chunk_tokens"),
        max_chunks: int = GenerateConfig.default("max_chunks"),
        questions_per_chunk: int = GenerateConfig.default("questions_per_chunk"),
        distractors: int = GenerateConfig.default("distractors"),
        oracle_probability: float = GenerateConfig.default("oracle_probability"),
        rank: int = TrainConfig.default("rank"),
        alpha: int = TrainConfig.default("alpha"),
        learning_rate: float = TrainConfig.default("learning_rate"),
        epochs: float = TrainConfig.default("epochs"),
        max_memory_ratio: float = QuantizeCheckConfig.default("max_memory_ratio"),
        gate: str = QuantizeCheckConfig.default("gate"),
        max_questions: int = EvalConfig.default("max_questions"),
        seed: int = GenerateConfig.default("seed"),
        train_gpus: str = asked.train_gpus,
        memory: str = asked.memory,
        node_selector: dict = asked.node_selector,  # type: ignore[type-arg]
    ) -> None:
        """Adapt a chat model to your documents with retrieval augmented fine-tuning.

        Writes questions and reasoned answers about the documents, fine-tunes the base model on
        them with LoRA, measures what 4-bit weights save and cost, and scores base and tuned model.

        Args:
            documents: Inputs. gs:// URI of the documents: a folder, or one file.
            questions: Inputs. gs:// URI of the evaluation questions, a JSON file in HotpotQA form.
            base_model: Inputs. Chat model to adapt: a hub id, or the gs:// URI of a model folder.
            teacher: Teacher. extractive (rules, no model, no cost) or openai (a chat endpoint).
            teacher_endpoint: Teacher. Base URL of the endpoint, such as http://teacher:8000/v1.
            teacher_model: Teacher. Name of the model at that endpoint.
            chunk_tokens: Rows. Most tokens in a chunk, the piece that a question is about.
            max_chunks: Rows. Ask about at most this many chunks, sampled by seed; 0 asks about all.
            questions_per_chunk: Rows. Questions that the teacher writes about a chunk.
            distractors: Rows. Other chunks shown beside the oracle chunk.
            oracle_probability: Rows. Share of rows, 0 to 1, that keep the oracle chunk.
            rank: Training. Rank r of the LoRA matrices.
            alpha: Training. LoRA scale: updates are multiplied by alpha / rank.
            learning_rate: Training. Peak learning rate; a cosine takes it down to zero.
            epochs: Training. Passes over the rows.
            max_memory_ratio: 4-bit check. Most weight bytes at 4 bits per byte at 16 bits.
            gate: 4-bit check. What a failed check means: warn (say so and evaluate) or stop.
            max_questions: Evaluation. Ask at most this many questions, sampled by seed.
            seed: General. Seed of everything random, in all steps.
            train_gpus: Hardware. GPUs of the train step; all on one node.
            memory: Hardware. Memory of each of train, quantize-check and eval, such as 64Gi.
            node_selector: Hardware. Labels of the nodes for these three steps, as JSON; the label
                cloud.google.com/gke-accelerator names the kind of GPU.
        """
        with dsl.ExitHandler(reading(summary(), jobs), name="run"):
            hardware = Hardware(train_gpus, memory, node_selector)

            def rows(**shard: Any) -> dsl.PipelineTask:
                return placed(
                    generate(
                        documents=documents,
                        teacher=teacher,
                        teacher_endpoint=teacher_endpoint,
                        teacher_model=teacher_model,
                        chunk_tokens=chunk_tokens,
                        max_chunks=max_chunks,
                        questions_per_chunk=questions_per_chunk,
                        distractors=distractors,
                        oracle_probability=oracle_probability,
                        seed=seed,
                        **shard,
                    ),
                    "generate",
                    jobs,
                )

            if shards == 1:
                written = rows()
            else:
                names = [f"{number}/{shards}" for number in range(1, shards + 1)]
                with dsl.ParallelFor(names, name="shards") as shard:
                    part = rows(shard=shard)
                written = reading(merge(shards=dsl.Collected(part.outputs["dataset"])), jobs)
            dataset = written.outputs["dataset"]

            trained = placed(
                train(
                    dataset=dataset,
                    base_model=base_model,
                    rank=rank,
                    alpha=alpha,
                    learning_rate=learning_rate,
                    epochs=epochs,
                    seed=seed,
                ),
                "train",
                jobs,
                hardware,
            )
            adapter = trained.outputs["adapter"]

            quantized = placed(
                quantize_check(
                    dataset=dataset,
                    base_model=base_model,
                    adapter=adapter,
                    max_memory_ratio=max_memory_ratio,
                    gate=gate,
                    seed=seed,
                ),
                "quantize-check",
                jobs,
                hardware,
            )

            gated_eval(
                decision=quantized.outputs["decision"],
                questions=questions,
                base_model=base_model,
                max_questions=max_questions,
                seed=seed,
                memory=memory,
                node_selector=node_selector,
                adapter=adapter,
                quantization=quantized.outputs["quantization"],
            ).set_caching_options(False)

    return raft
