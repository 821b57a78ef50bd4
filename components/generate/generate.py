"""The generate stage: documents in, RAFT rows out.

Documents are cut into chunks; a teacher writes questions and chain-of-thought answers about a
sample of them; answers are checked against their chunk; each is shown with distractors, and with
its oracle in a share P of the rows (Zhang et al. 2024, section 3).
"""

from pathlib import Path

from components.core.corpus.bm25 import Search
from components.core.describe import counted
from components.core.errors import DataError
from components.core.ledger import Ledger
from components.core.progress import headline, say, task
from components.core.records import GenerationReport
from components.core.storage import begin_artifact, check_output, finish_artifact, provenance
from components.generate.config import GenerateConfig
from components.generate.corpus import read_corpus
from components.generate.dataset import (
    ASKED_BEFORE,
    SPLITS,
    WHOLE,
    Dataset,
    by_count,
    say_rows,
    write_report,
)
from components.generate.leaks import LeakGuard
from components.generate.rows import RowMaker
from components.generate.sampling import sample
from components.generate.teachers import make_teacher


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
    headline("generate", f"{config.documents} → {output} (teacher: {config.teacher_name})")
    with Ledger("generate", output, config.prices) as ledger:
        # What needs no document is checked first: reading them may take hours.
        teacher = make_teacher(config)
        check_output(output, "generate")
        guard = LeakGuard(Path(config.eval_questions)) if config.eval_questions else None
        reading = read_corpus(config, guard)
        corpus = reading.corpus
        sampling = sample(corpus, config)
        numbers = sampling.share(config.shard)
        search = None
        if config.distractor_choice == "bm25":
            search = Search(corpus[number].text for number in range(len(corpus)))
        say(
            f"  {counted(reading.documents, 'document')} "
            f"({counted(reading.documents_duplicate, 'duplicate')} skipped), "
            f"{counted(len(corpus), 'chunk')}; asking about {len(numbers):,}"
        )
        if not sampling.held_out:
            say("  no validation rows: too few chunks, or --validation-fraction 0")
        begin_artifact(output, "generate", settings=provenance(config))
        maker = RowMaker(config, corpus, sampling, search, guard, teacher.name)
        with (
            Dataset.create(output) as dataset,
            task("asking the teacher", len(numbers), "chunks") as progress,
        ):
            dropped, quotes = maker.dropped, maker.quotes
            drafts_of = teacher.drafts((corpus[number] for number in numbers), ledger)
            for number, (chunk, drafts) in zip(numbers, drafts_of, strict=True):
                split = sampling.split_of(number)
                for row in maker.rows(chunk, drafts, split):
                    dropped[ASKED_BEFORE] += not dataset.write(row, split)
                progress.advance(
                    1, rows=dataset.rows.total(), dropped=dropped.total(), **ledger.so_far()
                )
            if not dataset.rows["train"] and config.shard == WHOLE:
                raise DataError(
                    f"no training row could be made; dropped: {dict(+dropped)}",
                    path=config.documents,
                    hint="Check the documents, or use another teacher with --teacher.",
                )
        report = GenerationReport(
            documents=reading.documents,
            documents_duplicate=reading.documents_duplicate,
            chunks=len(corpus),
            chunks_duplicate=reading.chunks_duplicate,
            chunks_used=len(numbers),
            rows={split: dataset.rows[split] for split in SPLITS},
            dropped=by_count(+dropped),
            rows_without_oracle=dataset.without_oracle,
            split_by=sampling.split_by,
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
