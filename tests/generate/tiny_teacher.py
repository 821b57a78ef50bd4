"""Make the tests' teacher again: the demo's tiny model, taught to reply as a teacher should.

    python -m tests.generate.tiny_teacher tests/data/teacher

SmolLM2-135M keeps RAFT's form in none of its replies (docs/results.md), so a real server needs
another small model for a run that gives rows. This one knows nothing but the demo's invented world:
it learns the product's own prompts, and as replies one question about the text, as JSON or as a
line, and the answers of the extractive teacher. All weights are trained, in a few minutes.
"""

import argparse
import json
import random
from pathlib import Path
from string import Template

from components.core.records import Chunk
from components.generate.config import GenerateConfig
from components.generate.teachers.extractive import ANSWER_TEMPLATE
from components.generate.teachers.prompts import Prompts
from pipelines.demo.world import KINDS, article
from tests.conftest import REPOSITORY

BASE = REPOSITORY / "pipelines" / "demo" / "model"
STEPS, BATCH, RATE = 700, 16, 2e-3
IGNORED = -100

PROMPTS = Prompts(GenerateConfig(documents="-", output="-", teacher="vllm", teacher_model="-"))
ANSWER = Template(ANSWER_TEMPLATE.read_text(encoding="utf-8").strip())


def exchange(rng: random.Random) -> tuple[str, str]:
    """A prompt about an invented text, and the reply to it."""
    item = article(rng, rng.choice(list(KINDS)))
    chunk = Chunk(id="-", document_id="-", title="", text=item.text, start=0, end=len(item.text))
    if rng.random() < 0.5:
        fact = rng.choice(item.facts)
        reply = ANSWER.substitute(
            sentence=fact.sentence, question=fact.question, answer=fact.answer
        )
        return PROMPTS.for_answer(chunk, fact.question).prompt, reply
    as_json = rng.random() < 0.5
    question = item.facts[0].question  # one of them, or the model would mix their beginnings
    reply = json.dumps({"questions": [question]}) if as_json else question
    return PROMPTS.for_questions(chunk, 1, as_json=as_json).prompt, reply


def make(output: Path, seed: int = 0) -> None:
    """Train the teacher and write it, in 16 bits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)

    def encoded() -> tuple[list[int], list[int]]:
        prompt, reply = exchange(rng)
        before = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        after = [*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]
        return before + after, [IGNORED] * len(before) + after

    for step in range(1, STEPS + 1):
        batch = [encoded() for _ in range(BATCH)]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor(
            [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in batch]
        )
        labels = torch.tensor([taught + [IGNORED] * (width - len(taught)) for _, taught in batch])
        loss = model(input_ids=ids, labels=labels).loss  # padded on the right, so no mask is needed
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"{step} of {STEPS} steps, loss {loss.item():.3f}", flush=True)
    model.half().save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    make(parser.parse_args().output)
