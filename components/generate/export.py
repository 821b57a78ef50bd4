"""`raft export`: a dataset in the formats that other trainers read.

    hf    the seven columns of the published RAFT code, nested as there
    chat  {"messages": [{"role": "user", …}, {"role": "assistant", …}]}

Reads our datasets and published RAFT rows, a folder or one file of JSON Lines. Each split becomes
one file named after it, so `datasets.load_dataset` reads the folder, and from there writes Parquet
or publishes the rows on the hub.
"""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from components.core.config import Settings, input_option, option
from components.core.errors import DataError
from components.core.locations import InputLocation
from components.core.progress import headline, say
from components.core.records import Dropped, RaftRow, read_jsonl
from components.core.storage import atomic_write, begin_artifact, finish_artifact, verify

PUBLISHED = (
    "id", "type", "question", "context", "oracle_context", "cot_answer", "instruction",
)  # fmt: skip


class ExportConfig(Settings):
    """A dataset in, the same rows in another format out."""

    stage: ClassVar[str] = "export"

    dataset: InputLocation = input_option(
        help="Dataset of generate, or published RAFT rows: a folder, or a .jsonl file."
    )
    format: Literal["hf", "chat"] = option(
        "hf", help="hf: the published columns; chat: messages.", group="Format"
    )


def run(config: ExportConfig) -> dict[str, int]:
    """Write one file a split; returns the rows of each.

    Raises:
        DataError: there is no such dataset, or a row of it is malformed.
    """
    source, output = Path(config.dataset), Path(config.output)
    headline("export", f"{source} → {output} ({config.format})")
    verify(source, "--dataset")
    files = [source]
    if source.is_dir():
        files = sorted(path for path in source.glob("*.jsonl") if path.name != Dropped.FILE)
    if not files:
        raise DataError(
            "no RAFT rows here",
            path=source,
            hint="--dataset takes a dataset of generate, or .jsonl files of RAFT rows.",
        )
    begin_artifact(output, "export")
    counts = dict.fromkeys((path.stem for path in files), 0)
    for path in files:
        with atomic_write(output / f"{path.stem}.jsonl") as file:
            for row in read_jsonl(path, RaftRow):
                file.write(json.dumps(_columns(row, config.format), ensure_ascii=False) + "\n")
                counts[path.stem] += 1
    finish_artifact(output)
    say(f"  {', '.join(f'{count} {split}' for split, count in counts.items())} rows")
    return counts


def _columns(row: RaftRow, form: str) -> dict[str, Any]:
    """A row in the format that is wanted."""
    if form == "hf":
        return row.model_dump(include=set(PUBLISHED))
    messages = [("user", row.instruction), ("assistant", row.cot_answer)]
    return {"messages": [{"role": role, "content": text} for role, text in messages]}
