"""Every command on every page: those of `raft` are parsed and their settings checked, other
programs' are held against what they name; only what needs a cloud or a GPU is not tried.
"""

import itertools
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from components.core.errors import ConfigError
from pipelines.cli import raft
from pipelines.parameters import read_parameters
from pipelines.run import plan
from pipelines.stages import COMMANDS, JOBS, config_class
from tests.conftest import REPOSITORY

ELSEWHERE = {"architecture.md"}
"""Its commands need its diffs: tests/eval/test_worked_diffs.py applies and runs them."""
PAGES = [
    REPOSITORY / "README.md",
    *sorted(path for path in (REPOSITORY / "docs").glob("*.md") if path.name not in ELSEWHERE),
]
NOT_TRIED = {
    "gcloud": "a cloud account",
    "nvidia-smi": "a GPU",
    "vllm": "a GPU: tests/generate/test_vllm.py starts the CPU build's server",
    "hf": "an account of the hub",
    "tensorboard": "a bucket",
    "iconv": "a file",
    "curl": "a server with a GPU",
    "lm_eval": "hours: tests/eval/test_task.py calls it by its functions",
}
"""Programs whose commands are not tried, and what they need."""
SHELL = {"export", "echo", "for", "done", "mkdir", "cp", "$EDITOR", "pip", "make", "pytest",
         "python", "docker", "kubectl", "raft"}  # fmt: skip


def commands(text: str) -> list[tuple[str, bool]]:
    """The commands of a page's shell blocks, and those of `raft` in its prose.

    Whether each is whole: prose and "…" leave out what does not matter there.
    """
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    blocks = re.sub(r" '\{.*?\}'", " JSON", blocks, flags=re.DOTALL)
    lines = blocks.splitlines()
    lines += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    parts = [part.strip() for line in lines for part in line.split(" && ")]
    found = [(part, "…" not in part) for part in parts if part and not part.startswith("#")]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return found + [(part, False) for part in re.findall(r"`(raft [a-z-]+ [^`]*--[^`]+)`", prose)]


FOUND = [(page.name, *found) for page in PAGES for found in commands(page.read_text("utf-8"))]


def filled(command: str) -> list[str]:
    """The words of a command with variables and dots replaced by something."""
    number = itertools.count()
    text = re.sub(r"gs://…", lambda _: f"gs://b/{next(number)}", command)
    text = re.sub(r"\$\(.*\)|\$(?!EDITOR)\w+", "x", text)
    text = re.sub(r" N$", " 1", text)
    text = re.sub(r"(--[a-z-]+) …", r"\1 x", text).replace(" … ", " ").removesuffix(" …")
    return [word.replace("…", "x") for word in shlex.split(text, comments=True)]


def check_raft(words: list[str], whole: bool) -> None:
    """Parse a command of `raft`; where the page shows it `whole`, its settings are complete."""
    name, *flags = [word for word in words if word != "--help"]
    command = raft.commands[name]
    if name == "job":
        stage, _, *flags = [word for word in flags if word not in ("--overlay", "h100")]
        name = stage.removesuffix("-gpu")
        command = raft.commands[name]
    try:
        with command.make_context(name, list(flags)) as context:
            if name not in COMMANDS or (name == "summary" and context.params["run_id"]):
                return
            settings = command.settings(context)  # type: ignore[attr-defined]
    except click.MissingParameter:
        assert not whole
        return
    try:
        config_class(name).parse(settings)
    except ConfigError as error:
        missing = [line for line in str(error).splitlines() if "missing" not in line]
        assert not whole and not missing, error


@pytest.mark.parametrize(("page", "command", "whole"), FOUND)
def test_a_command_on_a_page(page: str, command: str, whole: bool) -> None:
    program, *words = filled(command)
    if program in NOT_TRIED:
        return
    assert program in SHELL, f"{page}: how is {program} tried?"
    match program:
        case "raft":
            if words[0] in ("submit", "watch", "summary", "terminate") and "--host" not in words:
                words += ["--host", "x"]  # of the page's KF_PIPELINES_ENDPOINT
            existing = {"parameters.yaml": str(PAGES[0])}
            check_raft([existing.get(word, word) for word in words], whole)
        case "make":
            done = subprocess.run(
                ["make", "--dry-run", "--question", *words], cwd=REPOSITORY, capture_output=True
            )
            assert b"No rule" not in done.stderr and b"***" not in done.stderr, done.stderr
        case "docker":
            image = next(word for word in words if word.startswith("raft-"))
            stage = image.removeprefix("raft-").partition(":")[0]
            assert stage in JOBS
            check_raft([stage.removesuffix("-gpu"), *words[words.index(image) + 1 :]], whole=True)
        case "kubectl" if "-k" in words:
            folder = words[words.index("-k") + 1]
            assert folder.startswith("github.com/") or (REPOSITORY / folder).is_dir()
        case "pytest" | "python":
            (path,) = [word for word in words if word.startswith("tests/")]
            assert (REPOSITORY / path).exists()
        case "cp":
            places = [word for word in words[:-1] if word.startswith("pipelines/")]
            assert all((REPOSITORY / place).exists() for place in places)


def test_all_commands_are_seen() -> None:
    assert len(FOUND) > 90
    seen = {filled(command)[0] for _, command, _ in FOUND}
    assert seen <= SHELL | NOT_TRIED.keys(), seen
    with pytest.raises((AssertionError, click.UsageError)):
        check_raft(["train", "--rnk", "8"], whole=True)
    with pytest.raises(AssertionError):
        check_raft(["train", "--rank", "8"], whole=True)


def test_the_readmes_parameters_run_here_and_on_a_cluster(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGES[0].read_text("utf-8"), re.DOTALL)
    file = tmp_path / "parameters.yaml"
    file.write_text(block, encoding="utf-8")
    configs = plan(*read_parameters(file), tmp_path / "run")
    assert configs["generate"].teacher_model == "meta-llama/Llama-3.3-70B-Instruct"
