"""Make the demo's base model again: a tiny Llama that reads one paragraph and talks plainly.

    python -m pipelines.demo.pretrain --output pipelines/demo/model

Two stages. *Copying*: random token strings that come again, then random records ("name, frame,
value") that share their frames, so that only the name in front tells which value comes next.
This makes the attention heads that every retrieval rests on, and no word is learned in it.
*Text*: documents of the invented world, and conversations about ONE paragraph at a time, with
some copying kept up.

What the model has never seen: the RAFT form (`<DOCUMENT>`, `##begin_quote##`, `<ANSWER>:`), a
question with several paragraphs to choose from, a chain of thought. Mark-up of other words is
there on purpose: LoRA leaves the tied embeddings frozen, so each piece of a tag has to be trained.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.demo import world

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD, SYSTEM, USER, ASSISTANT = range(6)
SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
IGNORED = -100

# Tags and line ends stand alone and every piece gets a space in front, so that a word is the same
# token at the start of a text, after a tag and inside a sentence. A tiny model cannot learn that
# "Ada" and " Ada" are one name.
PIECES = r" ?</?[A-Za-z_]+>:?| ?##[a-z_]+##|\n"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '<|assistant|>' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

TAG_WORDS = (
    "note item title begin end quote answer document text list part key value source page line"
).split()
COMMON_WORDS = (
    "a about after all also an and answer any are as at be because been before but by can choose "
    "come context could day did do does each even find first for found from gives go good had has "
    "have he here her his how if in into is it its just know known last like long look made make "
    "many may means more most must name named new no not now of on one only or other our out over "
    "passage people question reply said same say says see she sentence should shows since small so "
    "some states subject such take tells text than that the their them then there therefore these "
    "they this time to two under up use very was way we well were what when where which who whom "
    "why will with words work would year you your So The This That It Here There We You In On "
    "Because Since Therefore According First Then"
).split()
RAFT_TAG_WORDS = {"document", "answer", "begin_quote", "end_quote"}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, apart from the seed."""

    # model
    vocabulary: int = 2048
    width: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    # optimizers: Muon for matrices, AdamW for embeddings and norms
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    # stages
    repeat_steps: int = 300
    record_steps: int = 400
    text_steps: int = 800
    tokens_per_copy_step: int = 2048
    tokens_per_text_step: int = 4096
    copy_share: float = 0.25
    longest_sample: int = 512


Sample = tuple[list[int], list[int]]  # token ids, labels


# ---- tokenizer ----------------------------------------------------------------------------------


def train_tokenizer(vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so any text can be encoded; the world's words become whole tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text for _ in range(6_000) for _, text in conversation(rng))
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# ---- text samples -------------------------------------------------------------------------------


def markup(rng: random.Random) -> str:
    """Two words in some mark-up, never the RAFT form's own tags."""
    words = f"{rng.choice(world.ADJECTIVES)} {rng.choice(world.GOODS)}"

    def tag() -> str:
        while True:
            drawn = "_".join(rng.choice(TAG_WORDS) for _ in range(rng.randint(1, 2)))
            if drawn not in RAFT_TAG_WORDS:
                return drawn

    name = tag()
    return rng.choice(
        [
            f"##{name}##{words}##{tag()}##",
            f"<{name}>{words}</{name}>",
            f"<{name.upper()}>{words}</{name.upper()}>",
            f"<{name.upper()}>: {words}",
            f"[{rng.choice(TAG_WORDS).upper()}] {words}",
            f"{rng.choice(TAG_WORDS).upper()}: {words}",
            f"{rng.choice(TAG_WORDS)}: {words}\n",
            f'"{words}" ({rng.choice(TAG_WORDS)})',
        ]
    )


def common_words(rng: random.Random) -> str:
    """Everyday English words in no order: they get a token each, and the token gets trained."""
    return " ".join(rng.choice(COMMON_WORDS) for _ in range(rng.randint(4, 12))) + "."


def conversation(rng: random.Random) -> list[tuple[str, str]]:
    """Turns of a chat: about one paragraph, then perhaps about another; or plain repeating."""
    turns: list[tuple[str, str]] = []
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, 4)):
            text = common_words(rng) if rng.random() < 0.3 else markup(rng)
            turns += [("user", f"Repeat: {text}"), ("assistant", text)]
        return turns
    for _ in range(rng.randint(1, 3)):
        item = world.article(rng, rng.choice(list(world.KINDS)))
        for number in range(rng.randint(1, 4)):
            fact = rng.choice(item.facts)
            draw = rng.random()
            if draw < 0.6:
                ask, reply = fact.question, f"According to the text, it is {fact.answer}."
            elif draw < 0.85:
                ask, reply = f"Quote the sentence: {fact.question}", fact.sentence
            elif draw < 0.95:
                ask, reply = f"Name the subject: {fact.question}", f"{fact.subject}."
            else:
                ask, reply = f"Repeat: {fact.sentence}", fact.sentence
            turns += [
                ("user", ask if number else f"{item.text}\n{ask}"),
                ("assistant", reply),
            ]
    return turns


def plain_text(rng: random.Random) -> str:
    """A few documents after each other, for continuing text."""
    kinds = list(world.KINDS)
    return "\n".join(world.article(rng, rng.choice(kinds)).text for _ in range(rng.randint(1, 5)))


def text_sample(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> Sample:
    """One text or conversation as tokens; in a conversation only replies are learned."""
    if rng.random() < 0.1:
        ids = [BOS, *tokenizer.encode(plain_text(rng), add_special_tokens=False), EOS]
        return ids, list(ids)
    ids, labels = [BOS], [IGNORED]
    for role, text in conversation(rng):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        if role == "assistant":
            ids += [ASSISTANT, *tokens, EOS]
            labels += [IGNORED, *tokens, EOS]
        else:
            ids += [USER, *tokens]
            labels += [IGNORED] * (len(tokens) + 1)
    return ids, labels


# ---- copying samples ----------------------------------------------------------------------------


def repeat_sample(rng: random.Random, vocabulary: int, longest: int) -> Sample:
    """A random string and the same again: makes induction heads."""
    string = [rng.randrange(ASSISTANT + 1, vocabulary) for _ in range(rng.randint(3, longest))]
    times = 2 if longest > 8 else 4
    ids = [BOS, *string * times]
    return ids, [IGNORED] * (len(string) + 2) + ids[len(string) + 2 :]


def record_sample(rng: random.Random, vocabulary: int, names: int, frames: int) -> Sample:
    """Random records that share frames, then some of them again: which value is by name only.

    A frame is some tokens before and some after the name, as in "the captain of E is V" or
    "E was built in V"; what is learned is only what the first mention settles.
    """

    def string(shortest: int, longest: int) -> list[int]:
        return [
            rng.randrange(ASSISTANT + 1, vocabulary) for _ in range(rng.randint(shortest, longest))
        ]

    # Few different tokens in the names, so that a name is known by all its tokens.
    letters = string(names + 2, 2 * names + 2)
    length = rng.randint(1, 3)
    known = [[rng.choice(letters) for _ in range(length)] for _ in range(names)]
    before = [string(0, 3) for _ in range(frames)]
    after = [string(1, 3) for _ in range(frames)]
    stop = string(1, 1)
    records = [
        (before[frame] + name + after[frame], string(1, 2) + stop)
        for name in known
        for frame in rng.sample(range(frames), rng.randint(1, frames))
    ]
    ids, labels = [BOS], [IGNORED]
    for key, value in records:
        ids += key + value
        labels += [IGNORED] * len(key + value)
    again = list({tuple(key): (key, value) for key, value in records}.values())
    rng.shuffle(again)
    for key, value in again:
        ids += key + value
        labels += [IGNORED] * len(key) + value
    return ids, labels


# ---- training -----------------------------------------------------------------------------------


def batches(
    draw: Callable[[], Sample], rng: random.Random, tokens: int, longest: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of about equal token counts, samples of like length together."""
    import torch

    while True:
        pool = [sample for sample in (draw() for _ in range(256)) if len(sample[0]) <= longest]
        pool.sort(key=lambda sample: len(sample[0]))
        grouped: list[list[Sample]] = [[]]
        for sample in pool:
            if grouped[-1] and (len(grouped[-1]) + 1) * len(sample[0]) > tokens:
                grouped.append([])
            grouped[-1].append(sample)
        rng.shuffle(grouped)
        for group in grouped:
            width = max(len(ids) for ids, _ in group)
            yield (
                torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group]),
            )


def build_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=0.05)
    return model


class Trainer:
    """Muon for the matrices, AdamW for the rest; counts steps and prints the loss."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe) -> None:
        import torch

        self.model = model
        matrices, others = [], []
        for name, weight in model.named_parameters():
            (matrices if weight.ndim == 2 and "embed" not in name else others).append(weight)
        self.optimizers: list[Any] = [
            torch.optim.Muon(matrices, lr=recipe.matrix_rate, weight_decay=0.01),
            torch.optim.AdamW(others, lr=recipe.other_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [recipe.matrix_rate, recipe.other_rate]
        self.started = time.process_time()

    def step(self, ids: torch.Tensor, labels: torch.Tensor, scale: float) -> tuple[float, float]:
        """One update; returns loss and accuracy over the learned tokens."""
        import torch

        hidden = self.model.model(ids, use_cache=False).last_hidden_state[:, :-1]
        labels = labels[:, 1:]
        learned = labels != IGNORED
        # Only learned positions meet the vocabulary: that projection is the dearest of all.
        logits, wanted = self.model.lm_head(hidden[learned]), labels[learned]
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item(), (logits.argmax(-1) == wanted).float().mean().item()

    def report(self, stage: str, step: int, steps: int, loss: float, accuracy: float) -> None:
        """One line of progress."""
        seconds = time.process_time() - self.started
        print(
            f"{stage} {step}/{steps}  loss {loss:.3f}  accuracy {accuracy:.3f}  "
            f"{seconds:.0f} CPU-seconds",
            flush=True,
        )


def learn_copying(trainer: Trainer, recipe: Recipe, vocabulary: int, rng: random.Random) -> None:
    """First strings, short before long; then records, few before many."""
    steps = recipe.repeat_steps + recipe.record_steps
    level = {"longest": 6, "names": 2, "frames": 1}

    def draw() -> Sample:
        if level["names"] == 2 or rng.random() < 0.2:
            return repeat_sample(rng, vocabulary, level["longest"])
        return record_sample(
            rng, vocabulary, rng.randint(2, level["names"]), rng.randint(1, level["frames"])
        )

    feed = None
    for step in range(steps):
        done = step / recipe.repeat_steps
        if step < recipe.repeat_steps:
            wanted = {"longest": 6 if done < 0.4 else 32, "names": 2, "frames": 1}
        else:
            later = (step - recipe.repeat_steps) / max(1, recipe.record_steps)
            wanted = {"longest": 64, "names": 4 if later < 0.4 else 8, "frames": 4}
        if feed is None or wanted != level:
            level.update(wanted)
            feed = batches(draw, rng, recipe.tokens_per_copy_step, recipe.longest_sample)
        loss, accuracy = trainer.step(*next(feed), scale=min(1.0, (step + 1) / 20))
        if (step + 1) % 50 == 0:
            trainer.report("copying", step + 1, steps, loss, accuracy)


def learn_text(
    trainer: Trainer, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> None:
    """Texts and conversations, with a share of copying so that it is not lost."""
    vocabulary = len(tokenizer)

    def draw() -> Sample:
        if rng.random() >= recipe.copy_share:
            return text_sample(rng, tokenizer)
        if rng.random() < 0.3:
            return repeat_sample(rng, vocabulary, 128)
        return record_sample(rng, vocabulary, rng.randint(2, 8), rng.randint(1, 4))

    feed = batches(draw, rng, recipe.tokens_per_text_step, recipe.longest_sample)
    for step in range(recipe.text_steps):
        left = 1 - step / recipe.text_steps
        scale = min(1.0, (step + 1) / 20, max(0.02, left / 0.4))
        loss, accuracy = trainer.step(*next(feed), scale=scale)
        if (step + 1) % 50 == 0:
            trainer.report("text", step + 1, recipe.text_steps, loss, accuracy)


def pretrain(output: Path, seed: int = 0, recipe: Recipe | None = None) -> None:
    """Make the model from nothing and save it with its tokenizer."""
    import torch

    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = train_tokenizer(recipe.vocabulary, seed)
    model = build_model(recipe, len(tokenizer))
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{len(tokenizer)} tokens, {parameters} parameters", flush=True)
    trainer = Trainer(model, recipe)
    learn_copying(trainer, recipe, len(tokenizer), rng)
    learn_text(trainer, recipe, tokenizer, rng)
    output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the demo's tiny base model again.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same model")
    arguments = parser.parse_args()
    pretrain(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
