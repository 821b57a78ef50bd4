"""Make the demo's base model again: a tiny Llama that reads one paragraph and talks plainly.

    python -m tests.demo.pretrain --output pipelines/demo/model

*Copying* comes first, in three steps and on random tokens only: walks and repeated strings ("what
came after this token last time?"), then records "name, frame, value" that share their frames, so
that only the name in front tells the value, first simple ones, then of all shapes. This makes the
attention heads that retrieval rests on; no word is learned in it. *Text* follows: documents of the
invented world, their sentences told again in another order (which teaches words to use the
lookups), and conversations about one paragraph at a time, with some copying kept up.

A conversation never names its entity in a question ("Where was this ship built?"). So the model
knows what is asked but has not learned to tell whose: with documents of one kind to choose from it
takes any value that fits. RAFT teaches that by having it restate the question and quote.

What the model has never seen: the RAFT form (`<DOCUMENT>`, `##begin_quote##`, `<ANSWER>:`), a
question that names its entity or has several paragraphs to choose from, a chain of thought.
Mark-up of other words is there on purpose: LoRA leaves the tied embeddings frozen, so each piece
of a tag has to be trained.
"""

from __future__ import annotations

import argparse
import random
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
LONGEST_INPUT = 4096

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


def _words(text: str) -> list[str]:
    return text.split()


TAG_WORDS = _words(
    "note item title begin end quote answer document text list part key value source page line"
)
COMMON_WORDS = _words(
    "a about after all also an and answer any are as at be because been before but by can choose "
    "come context could day did do does each even find first for found from gives go good had has "
    "have he here her his how if in into is it its just know known last like long look made make "
    "many may means more most must name named new no not now of on one only or other our out over "
    "passage people question reply said same say says see she sentence should shows since small so "
    "some states subject such take tells text than that the their them then there therefore these "
    "they this time to two under up use very was way we well were what when where which who whom "
    "why will with words work would year you your So The This That It Here There We You In On "
    "Because Since Therefore According First Then"
)
RAFT_TAG_WORDS = {"document", "answer", "begin_quote", "end_quote"}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what comes out, apart from the seed."""

    # model
    vocabulary: int = 1771
    width: int = 128
    layers: int = 3
    heads: int = 4
    feed_forward: int = 256
    # optimizers: Muon for matrices, AdamW for embeddings and norms
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    # stages
    walk_steps: int = 450
    mixed_steps: int = 100
    simple_lookup_steps: int = 600
    lookup_steps: int = 500
    text_steps: int = 450
    tokens_per_copy_step: int = 2048
    tokens_per_simple_lookup_step: int = 3072
    tokens_per_lookup_step: int = 4096
    tokens_per_text_step: int = 4096
    copy_share: float = 0.15
    retold_share: float = 0.35
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
        model_max_length=LONGEST_INPUT,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# ---- text samples -------------------------------------------------------------------------------


def markup(rng: random.Random) -> str:
    """Two words in some mark-up, never the RAFT form's own tags."""
    inner = f"{rng.choice(world.WORDS['adjectives'])} {rng.choice(world.WORDS['goods'])}"

    def tag() -> str:
        while True:
            drawn = "_".join(rng.choice(TAG_WORDS) for _ in range(rng.randint(1, 2)))
            if drawn not in RAFT_TAG_WORDS:
                return drawn

    name = tag()
    return rng.choice(
        [
            f"##{name}##{inner}##{tag()}##",
            f"<{name}>{inner}</{name}>",
            f"<{name.upper()}>{inner}</{name.upper()}>",
            f"<{name.upper()}>: {inner}",
            f"[{rng.choice(TAG_WORDS).upper()}] {inner}",
            f"{rng.choice(TAG_WORDS).upper()}: {inner}",
            f"{rng.choice(TAG_WORDS)}: {inner}\n",
            f'"{inner}" ({rng.choice(TAG_WORDS)})',
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
            # "Where was this ship built?": a name in the question would be practice in minding it.
            question = fact.question.replace(fact.subject, f"this {item.kind}")
            draw = rng.random()
            if draw < 0.6:
                ask, reply = question, f"According to the text, it is {fact.answer}."
            elif draw < 0.85:
                ask, reply = f"Quote the sentence: {question}", fact.sentence
            elif draw < 0.95:
                ask, reply = f"Name the subject: {question}", f"{fact.subject}."
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


def retold_sample(rng: random.Random, tokenizer: PreTrainedTokenizerFast, documents: int) -> Sample:
    """Documents of one kind, then their sentences once more in another order.

    How a sentence ends is known from how it begins, if the reader minds whom it is about. Learned
    are those ends. No question is asked.
    """
    kind = rng.choice(list(world.KINDS))
    items = [world.article(rng, kind) for _ in range(documents)]
    ids = [BOS, *tokenizer.encode("\n".join(item.text for item in items))]
    labels = [IGNORED] * len(ids)
    facts = [fact for item in items for fact in item.facts]
    rng.shuffle(facts)
    for fact in facts:
        start = tokenizer.encode(fact.sentence.removesuffix(f" {fact.answer}."))
        end = tokenizer.encode(f" {fact.answer}.")
        ids += start + end
        labels += [IGNORED] * len(start) + end
    return ids, labels


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


def random_tokens(rng: random.Random, count: int, vocabulary: int) -> list[int]:
    """Tokens drawn from the whole vocabulary, special ones apart."""
    return [rng.randrange(ASSISTANT + 1, vocabulary) for _ in range(count)]


def walk_sample(rng: random.Random, alphabet: int, states: int, length: int) -> Sample:
    """A walk in which each token has one successor, with jumps: what came after it last time?

    The jumps make every distance between a token and its last mention different. Plain repeated
    strings of one length were learned as "look that many places back", which is no induction.
    """
    tokens = rng.sample(range(ASSISTANT + 1, alphabet), states)
    successor = dict(zip(tokens, rng.sample(tokens, states), strict=True))
    ids, labels, seen = [BOS], [IGNORED], set()
    token, label = rng.choice(tokens), IGNORED
    while len(ids) < length:
        ids.append(token)
        labels.append(label)
        if rng.random() < 0.2:
            token, label = rng.choice(tokens), IGNORED
        else:
            following = successor[token]
            label = following if token in seen else IGNORED
            seen.add(token)
            token = following
    return ids, labels


def repeat_sample(rng: random.Random, vocabulary: int, longest: int) -> Sample:
    """A random string and the same again."""
    string = random_tokens(rng, rng.randint(3, longest), vocabulary)
    ids = [BOS, *string, *string]
    return ids, [IGNORED] * (len(string) + 2) + ids[len(string) + 2 :]


def simple_lookup_sample(rng: random.Random, vocabulary: int, names: int, length: int) -> Sample:
    """Random records "name, frame, value" drawn again and again: the name tells which value.

    All records of a sample share a few frames, as in "E was built in V", so the token before the
    value does not settle it. Learned are the values of records that have been seen.
    """
    tokens = rng.sample(range(ASSISTANT + 1, vocabulary), names + 12)
    known, rest = tokens[:names], tokens[names:]
    frames = [rest[:1], rest[1:3], rest[3:6]][: rng.randint(1, 3)]
    values: dict[tuple[int, int], int] = {}
    ids, labels = [BOS], [IGNORED]
    while len(ids) < length - 6:
        name, frame = rng.choice(known), rng.randrange(len(frames))
        key = [name, *frames[frame]]
        seen = (name, frame) in values
        value = values.setdefault((name, frame), rng.randrange(ASSISTANT + 1, vocabulary))
        ids += [*key, value]
        labels += [IGNORED] * len(key) + [value if seen else IGNORED]
        if rng.random() < 0.3:
            ids.append(rng.choice(rest[6:]))
            labels.append(IGNORED)
    return ids, labels


def lookup_sample(rng: random.Random, vocabulary: int, names: int, length: int) -> Sample:
    """The same with names and values of one or two tokens, and frames around the name.

    Names share their tokens ("Iron Raven", "Iron Eagle"), and two frames end alike, as with "is"
    in "The captain of E is V" and "The cargo of E is V".
    """
    tokens = rng.sample(range(ASSISTANT + 1, vocabulary), 2 * names + 16)
    letters, rest = tokens[: names + 2], tokens[2 * names :]
    name_length = 2 if rng.random() < 0.5 else 1
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < names:
        drawn.add(tuple(rng.sample(letters, name_length)))
    known = sorted(drawn)
    rng.shuffle(known)
    frames: list[tuple[list[int], list[int]]] = [
        ([], rest[:1]),
        ([], rest[1:3]),
        ([], rest[3:6]),
        (rest[6:8], rest[8:9]),
        (rest[9:12], rest[8:9]),
    ]
    frames = rng.sample(frames, rng.randint(1, 5))
    stop = rest[13]
    values: dict[tuple[tuple[int, ...], int], list[int]] = {}
    ids, labels = [BOS], [IGNORED]
    while len(ids) < length - 9:
        name, frame = rng.choice(known), rng.randrange(len(frames))
        before, after = frames[frame]
        key = [*before, *name, *after]
        seen = (name, frame) in values
        value = values.setdefault(
            (name, frame),
            random_tokens(rng, rng.randint(1, 2), vocabulary),
        )
        ids += [*key, *value, stop]
        labels += [IGNORED] * len(key) + (value if seen else [IGNORED] * len(value)) + [IGNORED]
    return ids, labels


def mixed_copy_sample(rng: random.Random, vocabulary: int, difficulty: float) -> Sample:
    """A walk, a repeated string or a simple lookup; difficulty goes from 0 to 1."""
    draw = rng.random()
    if draw < 0.2:
        length = rng.choice([64, 128])
        return walk_sample(rng, vocabulary, rng.randint(3, length // 3), length)
    if draw < 0.4:
        return repeat_sample(rng, vocabulary, 16 + int(112 * difficulty))
    return simple_lookup_sample(rng, vocabulary, 2 + rng.randint(0, int(6 * difficulty)), 64)


# ---- training -----------------------------------------------------------------------------------


def stack(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels as padded tensors."""
    import torch

    width = max(len(ids) for ids, _ in samples)
    return (
        torch.tensor([ids + [PAD] * (width - len(ids)) for ids, _ in samples]),
        torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in samples]),
    )


def batches(
    draw: Callable[[], Sample], rng: random.Random, tokens: int, longest: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of about equal token counts, samples of like length together."""
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
            yield stack(group)


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
            max_position_embeddings=LONGEST_INPUT,
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
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
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
        """One line of progress every 50 steps."""
        if step % 50 and step != steps:
            return
        seconds = time.process_time() - self.started
        print(
            f"{stage} {step}/{steps}  loss {loss:.3f}  accuracy {accuracy:.3f}  "
            f"{seconds:.0f} CPU-seconds",
            flush=True,
        )


def learn_copying(
    trainer: Trainer, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> None:
    """Walks over an alphabet that grows from 48 tokens to the whole vocabulary, then a mixture.

    The growth decides: from the whole vocabulary at once nothing emerged in 800 steps, with it
    induction appears within 450.
    """
    vocabulary, start = len(tokenizer), 48
    for step in range(recipe.walk_steps):
        done = step / recipe.walk_steps
        growth = (vocabulary / start) ** min(1.0, max(0.0, (done - 0.1) / 0.7))
        alphabet = min(vocabulary, int(start * growth))
        states, length = (12, 32) if done < 0.35 else (24, 64)
        samples = [
            walk_sample(rng, alphabet, rng.randint(3, states), length)
            for _ in range(recipe.tokens_per_copy_step // length)
        ]
        loss, accuracy = trainer.step(*stack(samples), scale=min(1.0, (step + 1) / 20))
        trainer.report("walks", step + 1, recipe.walk_steps, loss, accuracy)

    stage = {"difficulty": 0.0}
    feed = batches(
        lambda: mixed_copy_sample(rng, vocabulary, stage["difficulty"]),
        rng,
        recipe.tokens_per_copy_step,
        recipe.longest_sample,
    )
    for step in range(recipe.mixed_steps):
        stage["difficulty"] = min(1.0, step / recipe.mixed_steps / 0.6)
        loss, accuracy = trainer.step(*next(feed), scale=1.0)
        trainer.report("mixed copying", step + 1, recipe.mixed_steps, loss, accuracy)


def learn_simple_lookups(
    trainer: Trainer, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> None:
    """Two or three names, many lookups in each sample, and the whole vocabulary at once.

    A small alphabet, which helps the walks, is learned by heart here and costs the induction.
    """
    for step in range(recipe.simple_lookup_steps):
        samples = [
            simple_lookup_sample(rng, len(tokenizer), rng.randint(2, 3), 96)
            for _ in range(recipe.tokens_per_simple_lookup_step // 96)
        ]
        loss, accuracy = trainer.step(*stack(samples), scale=0.5 * min(1.0, (step + 1) / 20))
        trainer.report("simple lookups", step + 1, recipe.simple_lookup_steps, loss, accuracy)


def learn_lookups(
    trainer: Trainer, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> None:
    """All shapes of records: first few names, then up to eight and up to 256 tokens."""
    for step in range(recipe.lookup_steps):
        early = step < 0.3 * recipe.lookup_steps
        length = 96 if early else rng.choice([96, 160, 256])
        samples = [
            lookup_sample(rng, len(tokenizer), rng.randint(2, 3 if early else 8), length)
            for _ in range(recipe.tokens_per_lookup_step // length)
        ]
        loss, accuracy = trainer.step(*stack(samples), scale=0.5 * min(1.0, (step + 1) / 20))
        trainer.report("lookups", step + 1, recipe.lookup_steps, loss, accuracy)


def learn_text(
    trainer: Trainer, recipe: Recipe, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> None:
    """Texts and conversations, with a share of copying so that it is not lost."""
    vocabulary = len(tokenizer)

    stage = {"documents": 2}

    def draw() -> Sample:
        kind = rng.random()
        if kind < recipe.copy_share:
            if rng.random() < 0.4:
                return mixed_copy_sample(rng, vocabulary, difficulty=1.0)
            return lookup_sample(rng, vocabulary, rng.randint(2, 8), rng.choice([96, 160, 256]))
        if kind < recipe.copy_share + recipe.retold_share:
            return retold_sample(rng, tokenizer, rng.randint(2, stage["documents"]))
        return text_sample(rng, tokenizer)

    feed = batches(draw, rng, recipe.tokens_per_text_step, recipe.longest_sample)
    for step in range(recipe.text_steps):
        left = 1 - step / recipe.text_steps
        stage["documents"] = 2 + int(3 * min(1.0, (1 - left) / 0.5))
        # Half the rate: the full one undoes the lookups before words can use them.
        scale = 0.5 * min(1.0, (step + 1) / 20, max(0.02, left / 0.6))
        loss, accuracy = trainer.step(*next(feed), scale=scale)
        trainer.report("text", step + 1, recipe.text_steps, loss, accuracy)


def pretrain(output: Path, seed: int = 0, recipe: Recipe | None = None) -> None:
    """Make the model from nothing and save it with its tokenizer."""
    import torch

    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(recipe.vocabulary, seed)
    model = build_model(recipe, len(tokenizer))
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{len(tokenizer)} tokens, {parameters} parameters", flush=True)
    # A stage has its own optimizers and its own random numbers: one can be tried without the rest.
    for stage in (learn_copying, learn_simple_lookups, learn_lookups, learn_text):
        stage(Trainer(model, recipe), recipe, tokenizer, random.Random(seed))
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
