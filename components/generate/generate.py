"""The generate stage: documents in, RAFT rows out.

Documents are cut into chunks; a teacher writes questions and chain-of-thought answers about a
sample of them; answers are checked against their chunk; each is shown with distractors, and with
its oracle in a share P of the rows (Zhang et al. 2024, section 3).
"""

from contextlib import closing
from pathlib import Path

from components.core.corpus.bm25 import Search
from components.core.describe import counted
from components.core.ledger import Ledger
from components.core.progress import headline, say, task
from components.core.records import Dropped, GenerationReport
from components.core.storage import begin_artifact, check_output, finish_artifact, provenance
from components.generate.config import GenerateConfig
from components.generate.corpus import read_corpus
from components.generate.dataset import SPLITS, Dataset, say_rows, warnings, write_report
from components.generate.dropped import no_rows
from components.generate.gold import read_gold
from components.generate.leaks import LeakGuard
from components.generate.rows import RowMaker
from components.generate.sampling import hold_out, sample
from components.generate.teachers import make_teacher

CHUNKS_WITHOUT_ROWS = 10


def run(config: GenerateConfig) -> GenerationReport:
    """Write `train.jsonl`, `validation.jsonl`, `report.json`, `report.html` and `ledger.json`.

    `README.md` is the dataset card; `dropped.jsonl` has what became no row. A teacher that gives no
    row at first is given up.

    Raises:
        ConfigError: the corpus is too small for the settings, or a teacher flag is missing.
        ModuleNotFoundError: a library of the teacher is not installed.
        StorageError: the output folder holds something else.
        DataError: a document cannot be read, or no row could be made.
        TeacherError: the teacher cannot be reached.
    """
    output = Path(config.output)
    teacher_name = config.teacher_model or config.teacher
    headline("generate", f"{config.documents} → {output} (teacher: {teacher_name})")
    with Ledger("generate", output) as ledger:
        # What needs no document is checked first: reading them may take hours.
        teacher = make_teacher(config)
        check_output(output, "generate")
        guard = LeakGuard(Path(config.eval_questions)) if config.eval_questions else None
        reading = read_corpus(config, guard)
        corpus = reading.corpus
        showable = len(corpus)
        if config.gold_questions:
            for chunk in read_gold(Path(config.gold_questions)):
                reading.add_gold(chunk, guard)
        numbers = sample(corpus, showable, config)
        search = None
        if config.distractor_choice == "bm25":
            search = Search(corpus[number].text for number in range(showable))
        say(
            f"  {counted(reading.documents, 'document')} "
            f"({counted(reading.documents_duplicate, 'duplicate')} skipped), "
            f"{counted(len(corpus), 'chunk')}; asking about {len(numbers):,}"
        )
        for note in config.notes():
            say(f"  {note}")
        begin_artifact(output, "generate", settings=provenance(config))
        maker = RowMaker(config, corpus, search, guard, teacher.name)
        with Dataset.create(output) as dataset:
            with (
                task("asking the teacher", len(numbers), "chunks") as progress,
                closing(teacher.drafts(map(corpus.__getitem__, numbers), ledger)) as drafts_of,
            ):
                for done, (_, drafts) in enumerate(drafts_of, start=1):
                    for dropped in maker.check(numbers[done - 1], drafts):
                        dataset.drop(dropped)
                    usable = maker.usable.total()
                    figures = {"usable": usable, "dropped": dataset.dropped.total()}
                    progress.advance(1, **figures, **ledger.so_far())
                    paid = config.teacher != "extractive"
                    if done == CHUNKS_WITHOUT_ROWS and not usable and paid:
                        what = f"no row could be made of the first {done} chunks"
                        raise no_rows(what, config.documents, dataset.dropped, dataset.examples)
            split = hold_out(corpus, showable, maker.usable, config)
            for row, part in maker.rows(split):
                if isinstance(row, Dropped):
                    dataset.drop(row)
                else:
                    dataset.write(row, part)
            if not dataset.rows["train"]:
                what = "no training row could be made"
                raise no_rows(what, config.documents, dataset.dropped, dataset.examples)
        report = GenerationReport(
            documents=reading.documents,
            documents_duplicate=reading.documents_duplicate,
            chunks=len(corpus),
            chunks_duplicate=reading.chunks_duplicate,
            chunks_used=len(numbers),
            rows={split: dataset.rows[split] for split in SPLITS},
            dropped=dict(dataset.dropped.most_common()),
            rows_without_oracle=dataset.without_oracle,
            split_by=split.by,
            teacher=teacher.name,
            seed=config.seed,
            documents_bad=dict(reading.documents_bad.most_common()),
            bad_documents=reading.bad_documents,
            chunks_left_out=dict(reading.chunks_left_out.most_common()),
            quotes=dict(maker.quotes.most_common()),
            warnings=warnings(dataset.rows, dataset.dropped, config.teacher, config.gold_questions),
        )
        write_report(output, report, dataset)
    finish_artifact(output)
    say_rows(report, config.validation_fraction)
    if ledger.requests_failed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in ledger.requests_failed.most_common())
        say(f"  calls to the teacher that failed: {kinds}")
    return report
