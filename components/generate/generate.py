"""The generate stage: documents in, RAFT rows out.

Documents are cut into chunks; a teacher writes questions and chain-of-thought answers about a
sample of them; answers are checked against their chunk; each is shown with distractors, and with
its oracle in a share P of the rows (Zhang et al. 2024, section 3).
"""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from components.core.describe import counted
from components.core.errors import DataError
from components.core.ledger import Ledger
from components.core.progress import headline, say, task
from components.core.raft_form import instruction
from components.core.records import Chunk, Context, GenerationReport, RaftRow
from components.core.storage import begin_artifact, check_output, finish_artifact, provenance
from components.generate.answers import Checked, Unusable, check
from components.generate.config import GenerateConfig
from components.generate.corpus import Corpus, Pool, read_corpus
from components.generate.dataset import (
    ASKED_BEFORE,
    SPLITS,
    WHOLE,
    Dataset,
    by_count,
    say_rows,
    write_report,
)
from components.generate.distractors import Search, check_enough, show
from components.generate.leaks import LeakGuard
from components.generate.questions import is_contentless
from components.generate.teachers import make_teacher
from components.generate.teachers.teacher import Draft

SplitBy = Literal["document", "chunk"]
Best = Callable[[str], Sequence[int]]
"""Places in a pool of the chunks that fit a question best."""


def run(config: GenerateConfig) -> GenerationReport:
    """Write `train.jsonl`, `validation.jsonl`, `report.json`, `README.md` and `ledger.json`.

    Raises:
        ConfigError: the corpus is too small for the settings, or a teacher flag is missing.
        MissingDependencyError: the teacher's library is not installed.
        StorageError: the output folder holds something else.
        DataError: a document cannot be read, or no row could be made.
        TeacherError: the teacher cannot be reached.
    """
    output = Path(config.output)
    headline("generate", f"{config.documents} → {output} (teacher: {config.asked})")
    with Ledger("generate", output, config.prices) as ledger:
        # What needs no document is looked at first: reading them may take hours.
        teacher = make_teacher(config)
        check_output(output, "generate")
        guard = LeakGuard(Path(config.eval_questions)) if config.eval_questions else None
        reading = read_corpus(config, guard)
        corpus = reading.corpus
        sample = _sample(len(corpus), config)
        held_out, split_by = _split(sample, corpus, config)
        owners = corpus.owners if split_by == "document" else range(len(corpus))
        pools = _pools(corpus, owners, held_out)
        for pool in pools.values():
            check_enough(pool, config.distractors)
        asked = _share(sample, config.shard)
        best = _searches(corpus, pools, config)
        say(
            f"  {counted(reading.documents, 'document')} "
            f"({counted(reading.documents_duplicate, 'duplicate')} left out), "
            f"{counted(len(corpus), 'chunk')}; asking about {len(asked):,}"
        )
        if not held_out:
            say("  no validation rows: too few chunks, or --validation-fraction 0")
        begin_artifact(output, "generate", settings=provenance(config))
        dropped: Counter[str] = Counter()
        quotes: Counter[str] = Counter()
        with (
            Dataset(output) as dataset,
            task("asking the teacher", len(asked), "chunks") as progress,
        ):
            drafts_of = teacher.drafts((corpus[number] for number in asked), ledger)
            for number, (chunk, drafts) in zip(asked, drafts_of, strict=True):
                split = "validation" if owners[number] in held_out else "train"
                for place, draft in enumerate(drafts):
                    try:
                        checked = _check(draft, chunk, guard, config)
                        quotes += checked.quotes
                        row = _row(
                            draft, checked, chunk, place, pools[split], best[split], teacher.name,
                            config,
                        )  # fmt: skip
                    except Unusable as reason:
                        dropped[str(reason)] += 1
                        continue
                    dropped[ASKED_BEFORE] += not dataset.write(row, split)
                progress.advance(
                    1, rows=dataset.rows.total(), dropped=dropped.total(), **ledger.so_far()
                )
            if not dataset.rows["train"] and config.shard == WHOLE:
                raise DataError(
                    f"no training row could be made; dropped: {dict(+dropped)}",
                    path=config.documents,
                    hint="Look at the documents, or ask another teacher with --teacher.",
                )

        report = GenerationReport(
            documents=reading.documents,
            documents_duplicate=reading.documents_duplicate,
            chunks=len(corpus),
            chunks_duplicate=reading.chunks_duplicate,
            chunks_used=len(asked),
            rows={split: dataset.rows[split] for split in SPLITS},
            dropped=by_count(+dropped),
            rows_without_oracle=dataset.without_oracle,
            split_by=split_by,
            teacher=teacher.name,
            seed=config.seed,
            documents_bad=by_count(reading.documents_bad),
            bad_documents=reading.bad_documents,
            chunks_left_out=by_count(reading.chunks_left_out),
            quotes=dict(sorted(quotes.items())),
            shard=config.shard,
        )
        write_report(output, report)
    finish_artifact(output)
    say_rows(report, config.validation_fraction)
    if ledger.requests_failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ledger.requests_failed.most_common())
        say(f"  calls to the teacher that failed: {kinds}")
    if ledger.tokens_cached:
        share = ledger.tokens_cached / ledger.tokens_cacheable
        say(f"  the teacher's prefix cache had {share:.1%} of the prompt tokens of answer calls")
    return report


# ---- which chunks ------------------------------------------------------------------------------


def _sample(chunks: int, config: GenerateConfig) -> Sequence[int]:
    """The numbers of the chunks to ask about, in corpus order."""
    if not config.max_chunks or config.max_chunks >= chunks:
        return range(chunks)
    rng = random.Random(f"{config.seed}/chunks")
    return sorted(rng.sample(range(chunks), config.max_chunks))


def _split(
    sample: Sequence[int], corpus: Corpus, config: GenerateConfig
) -> tuple[set[int], SplitBy]:
    """What is held out for validation: documents, or chunks of an only document, by number.

    An only document gives its last chunks, so that training text is in one piece.
    """
    owners = list(dict.fromkeys(corpus.owners[number] for number in sample))
    split_by: SplitBy = "document"
    if len(owners) > 1:
        random.Random(f"{config.seed}/split").shuffle(owners)
    else:
        owners, split_by = list(sample), "chunk"
    count = min(
        max(round(len(owners) * config.validation_fraction), config.validation_fraction > 0),
        len(owners) - 1,
    )
    return set(owners[len(owners) - count :]), split_by


def _pools(corpus: Corpus, owners: Sequence[int], held_out: set[int]) -> dict[str, Pool]:
    """What a row may show: in training, nothing of what is held out."""
    shown = (number for number in range(len(corpus)) if owners[number] not in held_out)
    return {
        "train": Pool(corpus, array("I", shown)),
        "validation": Pool(corpus, range(len(corpus))),
    }


def _share(sample: Sequence[int], shard: str) -> Sequence[int]:
    """One shard's part of the sample: a run of it, so that shards follow each other."""
    number, count = map(int, shard.split("/"))
    return sample[(number - 1) * len(sample) // count : number * len(sample) // count]


def _searches(corpus: Corpus, pools: dict[str, Pool], config: GenerateConfig) -> dict[str, Best]:
    """For each pool, what finds its chunks that fit a question best; nothing for random ones."""
    if config.distractor_choice == "random":
        return dict.fromkeys(pools, lambda _: ())
    search = Search(corpus[number].text for number in range(len(corpus)))
    places = {number: place for place, number in enumerate(pools["train"].numbers)}

    def in_training(question: str) -> list[int]:
        found = search.best(question, config.distractors)
        return [places[number] for number in found if number in places]

    return {
        "train": in_training,
        "validation": lambda question: search.best(question, config.distractors),
    }


# ---- rows --------------------------------------------------------------------------------------


def _check(draft: Draft, oracle: Chunk, guard: LeakGuard | None, config: GenerateConfig) -> Checked:
    """The draft's answer, fit for a row.

    Raises:
        Unusable: the draft must be dropped.
    """
    if draft.fault:
        raise Unusable(draft.fault)
    if is_contentless(draft.question):
        raise Unusable("question points at the passage and names nothing")
    checked = check(draft.cot_answer, draft.question, oracle.text, config.quote_similarity)
    if guard is not None and guard.knows_question(draft.question):
        raise Unusable("gives away an evaluation question")
    return checked


def _row(
    draft: Draft,
    checked: Checked,
    oracle: Chunk,
    place: int,
    pool: Pool,
    best: Best,
    teacher: str,
    config: GenerateConfig,
) -> RaftRow:
    """The row around a checked draft; its id is given when it is written.

    Raises:
        Unusable: no distractors can be found for it.
    """
    rng = random.Random(f"{config.seed}/{oracle.id}/{place}")
    shown, position = show(
        oracle, checked.answer, pool, config.distractors, config.oracle_probability, rng,
        best(draft.question),
    )  # fmt: skip
    return RaftRow(
        id="",
        type=oracle.type,
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
