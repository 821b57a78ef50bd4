"""`raft card`: an adapter to publish, whose card has the figures of its evaluation.

The adapter of train is finished before it is evaluated, and its files have checksums; so this is a
copy, of what others load and nothing about the machine that made it.
"""

import shutil
from pathlib import Path

from components.core import card
from components.core.errors import DataError, StorageError, first_line
from components.core.model_files import check_adapter
from components.core.progress import headline, say
from components.core.records import Evaluation, read_json
from components.core.storage import atomic_write, begin_artifact, finish_artifact, verify
from components.use.config import CardConfig

PUBLISHED = (
    "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
)  # fmt: skip
NOT_PUSHED = ["manifest.json", "manifest.partial.json"]


def run(config: CardConfig) -> None:
    """Write adapter and card to a folder, and push them where that is asked for.

    Raises:
        DataError: the adapter has no card, or it or the evaluation is missing or damaged.
        StorageError: the hub refuses.
    """
    source, output = Path(config.adapter), Path(config.output)
    headline("card", f"{source} → {output}")
    verify(source, "--adapter")
    check_adapter(config.adapter)
    if not (source / card.FILE).is_file():
        raise DataError(
            "no such file: an earlier version trained this adapter",
            path=source / card.FILE,
            hint="Train it again, or write a card by hand.",
        )
    text = (source / card.FILE).read_text(encoding="utf-8")
    if config.evaluation:
        verify(Path(config.evaluation), "--evaluation")
        evaluation = read_json(Path(config.evaluation) / Evaluation.FILE, Evaluation)
        text = card.with_figures(text, evaluation)
    begin_artifact(output, config.stage)
    for name in PUBLISHED:
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)
    with atomic_write(output / card.FILE) as file:
        file.write(text)
    finish_artifact(output)
    if config.push_to_hub:
        _push(output, config.push_to_hub)


def _push(folder: Path, repository: str) -> None:
    from huggingface_hub import HfApi

    try:
        hub = HfApi()
        hub.create_repo(repository, private=True, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=NOT_PUSHED,
            commit_message="RAFT adapter",
        )
    except Exception as error:  # the hub's own, and those of its HTTP library
        raise StorageError(
            f"--push-to-hub {repository}: the hub refuses ({first_line(error)})",
            hint="Set HF_TOKEN to a token that may write there. The folder is complete: "
            f"hf upload {repository} {folder}",
        ) from error
    say(f"  {commit.commit_url}")
