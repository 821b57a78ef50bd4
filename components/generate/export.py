"""`raft export`: a dataset in the formats that other trainers and evaluators read.

    hf          the seven columns of the published RAFT code, nested as there
    completion  {"prompt": instruction, "completion": chain-of-thought answer}
    chat        {"messages": [{"role": "user", …}, {"role": "assistant", …}]}
    eval        {"id", "question", "context", "answer", "oracle_context"}: what to ask, and the gold

Reads our datasets and published RAFT files (JSON Lines or Parquet), a folder or one file. Each
split becomes one file named after it, so `datasets.load_dataset` reads the folder.
"""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from components.core.config import InputLocation, Settings, option
from components.core.errors import DataError, MissingDependencyError, StorageError, first_line
from components.core.progress import headline, say
from components.core.raft_form import find_answer
from components.core.records import RaftRow, explain, read_jsonl
from components.core.storage import (
    LOCK,
    MANIFEST,
    atomic_write,
    begin_artifact,
    finish_artifact,
    verify,
)

PUBLISHED = (
    "id", "type", "question", "context", "oracle_context", "cot_answer", "instruction",
)  # fmt: skip
SUFFIXES = (".jsonl", ".json", ".parquet")
ROWS_AT_ONCE = 1000


class ExportConfig(Settings):
    """A dataset in, the same rows in another format out."""

    stage: ClassVar[str] = "export"

    dataset: InputLocation = option(
        help="Dataset of generate, or published RAFT rows: a folder, or a .jsonl or .parquet file.",
        group="Inputs",
    )
    format: Literal["hf", "completion", "chat", "eval"] = option(
        "hf",
        help="hf: the published columns; completion: prompt and completion; chat: messages; eval: "
        "question, context and gold answer.",
        group="Format",
    )
    type: Literal["jsonl", "parquet"] = option("jsonl", help="Kind of file.", group="Format")
    system_prompt: str = option(
        "", help="System message of every chat, with --format chat.", group="Format"
    )
    push_to_hub: str = option(
        "",
        pattern=r"^([\w.-]+/[\w.-]+)?$",
        help="Publish the files as this dataset of the Hugging Face hub, such as me/my-rows; a new "
        "one is private. The token is read from HF_TOKEN.",
        group="Output",
    )


def run(config: ExportConfig) -> dict[str, int]:
    """Write one file a split; returns the rows of each.

    Raises:
        DataError: there is no such dataset, or a row of it is malformed.
        StorageError: the hub does not take the files, which are in the output all the same.
    """
    source, output = Path(config.dataset), Path(config.output)
    headline("export", f"{source} → {output} ({config.format}, {config.type})")
    files = _files(source)
    begin_artifact(output, "export")
    counts = {}
    for path in files:
        rows = (_columns(row, config) for row in read_raft_rows(path))
        target = output / f"{path.stem}.{config.type}"
        counts[path.stem] = _WRITERS[config.type](rows, target)
    if not any(counts.values()):
        raise DataError("holds no row", path=source)
    finish_artifact(output)
    say(f"  {', '.join(f'{count} {split}' for split, count in counts.items())} rows")
    if config.push_to_hub:
        say(f"  published at {_push(output, config.push_to_hub)}")
    return counts


def _push(folder: Path, repository: str) -> str:
    """Commit the files to a dataset of the hub, private if it is new; its address."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise MissingDependencyError(
            "--push-to-hub needs the hub's client", hint="pip install huggingface_hub"
        ) from error
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get("HF_TOKEN"))
    try:
        address = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=folder,
            ignore_patterns=[MANIFEST, LOCK],
            commit_message="RAFT rows",
        )
    except Exception as error:  # its transport has errors of its own, and changes names
        raise StorageError(
            f"--push-to-hub {repository}: {first_line(error)}",
            hint="Is HF_TOKEN set to a token that may write there? The files are in --output.",
        ) from error
    return str(address)


def read_raft_rows(path: Path) -> Iterator[RaftRow]:
    """Stream the rows of a file, ours or published.

    Raises:
        DataError: the file cannot be read, or a row is malformed; names the row.
    """
    if path.suffix != ".parquet":
        yield from read_jsonl(path, RaftRow)
        return
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot be read as Parquet ({error})", path=path) from error
    with file:
        batches = file.iter_batches(ROWS_AT_ONCE)
        rows = (row for batch in batches for row in batch.to_pylist())
        number = 0
        try:
            for number, row in enumerate(rows, start=1):  # noqa: B007 (counted for the errors)
                yield RaftRow.model_validate(row)
        except ValidationError as error:
            raise DataError(f"row {number}: {explain(error)}", path=path) from error
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"is damaged after row {number} ({error})", path=path) from error


def _files(source: Path) -> list[Path]:
    if source.exists():
        verify(source, "--dataset")
    if source.is_dir():
        ours = [source / f"{split}.jsonl" for split in ("train", "validation")]
        if all(path.is_file() for path in ours):
            return ours
        files = sorted(path for path in source.iterdir() if path.suffix in SUFFIXES)
    else:
        files = [source]
    if not files or not all(path.is_file() and path.suffix in SUFFIXES for path in files):
        raise DataError(
            "no RAFT rows here", path=source,
            hint="--dataset takes a dataset of generate, or .jsonl or .parquet files of RAFT rows.",
        )  # fmt: skip
    return files


# ---- formats -----------------------------------------------------------------------------------


def _columns(row: RaftRow, config: ExportConfig) -> dict[str, Any]:
    """A row in the format that is wanted."""
    match config.format:
        case "completion":
            return {"prompt": row.instruction, "completion": row.cot_answer}
        case "chat":
            messages = [("user", row.instruction), ("assistant", row.cot_answer)]
            if config.system_prompt:
                messages.insert(0, ("system", config.system_prompt))
            return {"messages": [{"role": role, "content": text} for role, text in messages]}
        case "eval":
            return {
                "id": row.id,
                "question": row.question,
                "context": row.instruction.removesuffix(row.question).rstrip("\n"),
                "answer": row.answer or find_answer(row.cot_answer)[0],
                "oracle_context": row.oracle_context,
            }
    return row.model_dump(include=set(PUBLISHED))


def _write_jsonl(rows: Iterator[dict[str, Any]], path: Path) -> int:
    count = 0
    with atomic_write(path) as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 (counted for the caller)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    count = 0
    partial = path.with_name(f".{path.name}.half")
    writer = None
    try:
        while batch := list(islice(rows, ROWS_AT_ONCE)):
            table = pyarrow.Table.from_pylist(batch)
            writer = writer or pyarrow.parquet.ParquetWriter(partial, table.schema)
            writer.write_table(table)
            count += len(batch)
    finally:
        if writer is not None:
            writer.close()
    if count:
        partial.replace(path)
    return count


_WRITERS = {"jsonl": _write_jsonl, "parquet": _write_parquet}
