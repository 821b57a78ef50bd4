"""The generate stage: documents in, RAFT rows out.

Documents are cut into chunks; a teacher writes questions and chain-of-thought answers about a
sample of them; answers are checked against their chunk; each is shown with distractors, and with
its oracle in a share P of the rows (Zhang et al. 2024, section 3).
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Literal, TypeVar

from components.errors import ConfigError, DataError
from components.generate.answers import Unusable, check
from components.generate.chunking import make_chunker
from components.generate.config import GenerateConfig
from components.generate.distractors import check_enough, show
from components.generate.documents import read_documents
from components.generate.teachers import Draft, make_teacher
from components.ledger import Ledger
from components.progress import headline, say, task
from components.records import (
    Chunk,
    Context,
    Document,
    GenerationReport,
    RaftRow,
    instruction,
)
from components.storage import atomic_write, seal, unseal, write_json

CARD = Path(__file__).with_name("card.md")

SplitBy = Literal["document", "chunk"]

T = TypeVar("T", Document, Chunk)


def run(config: GenerateConfig) -> GenerationReport:
    """Write `train.jsonl`, `validation.jsonl`, `report.json`, `README.md` and `ledger.json`.

    Raises:
        ConfigError: the corpus is too small for the settings, or a teacher flag is missing.
        DataError: a document cannot be read, or no row could be made.
        TeacherError: the teacher cannot be reached.
    """
    output = Path(config.output)
    headline("generate", f"{config.documents} → {output}")
    _keep_apart(Path(config.documents), output)
    with Ledger("generate", output, config.prices) as ledger:
        teacher = make_teacher(config)
        documents, duplicates = _distinct(read_documents(Path(config.documents)))
        chunks, duplicate_chunks = _distinct(_cut(documents, config))
        asked = _sample(chunks, config)
        held_out, split_by = _split(asked, config)
        pools = {
            "train": [chunk for chunk in chunks if _owner(chunk, split_by) not in held_out],
            "validation": chunks,
        }
        for pool in pools.values():
            check_enough(pool, config.distractors)
        say(
            f"  {len(documents)} documents ({duplicates} duplicates left out), {len(chunks)} "
            f"chunks; asking about {len(asked)}"
        )
        if not held_out:
            say("  no validation rows: too few chunks, or --validation-fraction 0")
        unseal(output)
        written: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        without_oracle = 0
        with (
            atomic_write(output / "train.jsonl") as train,
            atomic_write(output / "validation.jsonl") as validation,
            task("asking the teacher", len(asked), "chunks") as progress,
        ):
            files = {"train": train, "validation": validation}
            for chunk, drafts in teacher.drafts(asked, ledger):
                split = "validation" if _owner(chunk, split_by) in held_out else "train"
                for number, draft in enumerate(drafts):
                    try:
                        row = _row(draft, chunk, number, pools[split], teacher.name, config)
                    except Unusable as reason:
                        dropped[str(reason)] += 1
                        continue
                    row = row.model_copy(update={"id": f"seed_task_{written.total()}"})
                    files[split].write(row.model_dump_json() + "\n")
                    written[split] += 1
                    without_oracle += row.oracle_index is None
                progress.advance(rows=written.total(), dropped=dropped.total())
            if not written["train"]:
                raise DataError(
                    f"no training row could be made; dropped: {dict(dropped)}",
                    path=config.documents,
                    hint="Look at the documents, or ask another teacher with --teacher.",
                )

        report = GenerationReport(
            documents=len(documents),
            documents_duplicate=duplicates,
            chunks=len(chunks),
            chunks_duplicate=duplicate_chunks,
            chunks_used=len(asked),
            rows={split: written[split] for split in files},
            dropped=dict(dropped.most_common()),
            rows_without_oracle=without_oracle,
            split_by=split_by,
            teacher=teacher.name,
            seed=config.seed,
        )
        write_json(output / "report.json", report)
        _write_card(output / "README.md", report)
    seal(output)
    say(f"  {written['train']} training and {written['validation']} validation rows")
    return report


def _keep_apart(documents: Path, output: Path) -> None:
    """Refuse to read what is being written.

    Raises:
        ConfigError: one of the two lies in the other.
    """
    source, target = documents.resolve(), output.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise ConfigError(
            f"--output {output} and --documents {documents} lie in each other",
            hint="Give --output a folder beside the documents.",
        )


def _distinct(texts: Iterable[T]) -> tuple[list[T], int]:
    """Texts without those whose words came before, and how many those were."""
    seen: set[str] = set()
    kept, duplicates = [], 0
    for item in texts:
        words = " ".join(item.text.split()).casefold()
        if words in seen:
            duplicates += 1
        else:
            seen.add(words)
            kept.append(item)
    return kept, duplicates


def _cut(documents: Sequence[Document], config: GenerateConfig) -> list[Chunk]:
    cut = make_chunker(config.tokenizer, config.chunk_tokens)
    chunks: list[Chunk] = []
    with task("cutting documents", len(documents), "documents") as progress:
        for document in documents:
            chunks += cut(document)
            progress.advance(chunks=len(chunks))
    return chunks


def _sample(chunks: Sequence[Chunk], config: GenerateConfig) -> list[Chunk]:
    """The chunks to ask about, in corpus order."""
    if not config.max_chunks or config.max_chunks >= len(chunks):
        return list(chunks)
    rng = random.Random(f"{config.seed}/chunks")
    return [chunks[index] for index in sorted(rng.sample(range(len(chunks)), config.max_chunks))]


def _split(asked: Sequence[Chunk], config: GenerateConfig) -> tuple[set[str], SplitBy]:
    """What is held out for validation: document ids, or chunk ids of an only document.

    An only document gives its last chunks, so that training text is in one piece.
    """
    owners = list(dict.fromkeys(chunk.document_id for chunk in asked))
    split_by: SplitBy = "document"
    if len(owners) > 1:
        random.Random(f"{config.seed}/split").shuffle(owners)
    else:
        owners, split_by = [chunk.id for chunk in asked], "chunk"
    count = min(
        max(round(len(owners) * config.validation_fraction), config.validation_fraction > 0),
        len(owners) - 1,
    )
    return set(owners[len(owners) - count :]), split_by


def _owner(chunk: Chunk, split_by: SplitBy) -> str:
    return chunk.document_id if split_by == "document" else chunk.id


def _row(
    draft: Draft,
    oracle: Chunk,
    number: int,
    pool: Sequence[Chunk],
    teacher: str,
    config: GenerateConfig,
) -> RaftRow:
    """A verified row around a draft; its id is given when it is written.

    Raises:
        Unusable: the draft must be dropped.
    """
    if draft.fault:
        raise Unusable(draft.fault)
    checked = check(draft.cot_answer, draft.question, oracle.text, config.quote_similarity)
    rng = random.Random(f"{config.seed}/{oracle.id}/{number}")
    shown, position = show(oracle, pool, config.distractors, config.oracle_probability, rng)
    return RaftRow(
        id="",
        type="general",
        question=draft.question,
        context=Context(
            title=[[chunk.title for chunk in shown]], sentences=[[chunk.text for chunk in shown]]
        ),
        oracle_context=oracle.text,
        cot_answer=checked.cot_answer,
        instruction=instruction([chunk.text for chunk in shown], draft.question),
        answer=checked.answer,
        document_id=oracle.document_id,
        chunk_id=oracle.id,
        oracle_index=position,
        distractor_ids=[chunk.id for chunk in shown if chunk.id != oracle.id],
        teacher=teacher,
    )


def _write_card(path: Path, report: GenerationReport) -> None:
    figures = report.model_dump() | report.rows
    figures["dropped"] = (
        "\n".join(f"| {reason} | {count} |" for reason, count in report.dropped.items())
        or "| (none) | 0 |"
    )
    card = Template(CARD.read_text(encoding="utf-8"))
    with atomic_write(path) as file:
        file.write(card.substitute(figures))
