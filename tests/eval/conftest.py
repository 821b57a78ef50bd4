"""A random little chat model with an adapter, and questions for it: real files, made in seconds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.core.records import Sample
from components.eval.config import EvalConfig

LIMIT = 24
Stage = Callable[..., EvalConfig]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n"
    "{{ message.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def make_question(number: int, **changes: Any) -> dict[str, Any]:
    """A HotpotQA row: the oracle paragraph stands second of three."""
    return {
        "_id": f"q{number}",
        "question": f"Where was Ada{number} born?",
        "answer": f"Kelden {number}",
        "supporting_facts": [[f"Ada{number}", 0]],
        "context": [
            [f"Bram{number}", [f"Bram{number} bakes bread.", " He sings."]],
            [f"Ada{number}", [f"Ada{number} was born in Kelden {number}.", " She paints."]],
            [f"Cora{number}", [f"Cora{number} lives in Mossby." * (1 + number % 3)]],
        ],
        "type": "bridge",
        "level": "easy",
        **changes,
    }


def make_sample(arm: str = "raft", **changes: Any) -> Sample:
    """A judged generation that is right, unless changed."""
    fields: dict[str, Any] = {
        "question_id": "q0",
        "arm": arm,
        "question": "Where was Ada born?",
        "gold": ["Kelden"],
        "generation": "##begin_quote##Ada was born in Kelden.##end_quote## <ANSWER>: Kelden",
        "answer": "Kelden",
        "f1": 1.0,
        "em": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "contains": True,
        "truncated": False,
        "answered": True,
        "documents": ["Bram bakes.", "Ada was born in Kelden. She paints."],
        "oracle_indices": [1],
    }
    return Sample(**{**fields, **changes})


@pytest.fixture(scope="session")
def questions_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "dev.json"
    path.write_text(json.dumps([make_question(number) for number in range(6)]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of random weights that stops by itself now and then.

    Its own generation settings sample and penalise repetition, as published chat models' do.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [json.dumps(make_question(number)) for number in range(20)],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # As Llama's does, it writes a bos in front of any text: one more than the template's.
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.4,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    with torch.no_grad():  # so that some generations end before the limit and some do not
        model.lm_head.weight[2] *= 2.0
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        repetition_penalty=1.3,
        eos_token_id=[2, 5],
        max_new_tokens=3,
    )
    model.save_pretrained(folder)
    return folder


def make_adapter(model: Path, folder: Path, rank: int, layers: str | list[str]) -> Path:
    """A LoRA adapter of random weights, strong enough to change what the model says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    settings = LoraConfig(
        r=rank, lora_alpha=16, target_modules=layers, init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"), 4, "all-linear")


@pytest.fixture(scope="session")
def configure(tiny_model: Path, tiny_adapter: Path, questions_file: Path) -> Stage:
    """Makes the settings of an evaluation of the tiny model."""

    def build(output: Path | str, **changes: object) -> EvalConfig:
        return EvalConfig.parse(
            {
                "questions": str(questions_file),
                "base_model": str(tiny_model),
                "adapter": str(tiny_adapter),
                "output": str(output),
                "max_new_tokens": LIMIT,
                "batch_size": 4,
                "dtype": "float32",
                **changes,
            }
        )

    return build
