"""The `raft` command as a user meets it: help, errors, exit codes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.config import flag
from pipelines.cli import main, raft
from pipelines.stages import COMMANDS, STAGES, config_class
from tests.conftest import Raft

HEAVY = {
    "accelerate", "bitsandbytes", "datasets", "google.cloud", "kfp", "kfp_server_api",
    "kubernetes", "lm_eval", "numpy", "openai", "peft", "torch", "transformers",
    "trl", "vllm",
}  # fmt: skip


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import contextlib, sys\nfrom pipelines.cli import main\n"
        f"for command in {['', *raft.commands]!r}:\n"
        "    with contextlib.suppress(SystemExit):\n        main([*command.split(), '--help'])\n"
        f"    print('LOADED', command, sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.count("Usage: raft") == 1 + len(raft.commands)
    loaded = done.stderr.splitlines()
    assert len(loaded) == 1 + len(raft.commands) and all(line.endswith(" []") for line in loaded)


def test_help_lists_every_command_once_and_the_stages_in_their_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^  ([a-z][a-z-]+)  +[A-Z]", capsys.readouterr().out, re.MULTILINE)
    assert listed[:6] == [*STAGES, "run", "demo"]
    assert sorted(listed) == sorted(raft.commands)
    assert set(COMMANDS) < set(listed)


@pytest.mark.parametrize("stage", STAGES)
def test_help_teaches_every_flag(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main([stage, "--help"])
    assert leave.value.code == 0
    out = capsys.readouterr().out
    text, letters = " ".join(out.split()), "".join(out.split())  # lines break at hyphens, too
    for name, field in config_class(stage).model_fields.items():
        assert flag(name) in text
        assert "".join(field.description.split()) in letters
    assert f"raft {stage}" in text, "an example"
    assert "--executor-input JSON Set by Kubeflow Pipelines; do not pass it yourself." in text


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_accepted(name: str) -> None:
    program, command, *flags = shlex.split(COMMANDS[name].example)
    assert (program, command) == ("raft", name)
    context = raft.commands[name].make_context(name, flags)
    config = config_class(name).parse(raft.commands[name].settings(context))
    if name == "hardware":
        assert config.outputs().train_memory_limit == "160Gi"


def errors(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    with pytest.raises(SystemExit) as leave:
        main([str(argument) for argument in arguments])
    return int(leave.value.code or 0), capsys.readouterr().err


def test_a_field_of_an_object_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    compiled = '{"train": {"gpus": "1", "memory_request": "64Gi"}}'
    code, text = errors(capsys, "hardware", "--compiled", compiled, "--output", "x")
    assert code == 2
    assert "--compiled: train.memory_limit: Field required" in text
    assert "--compiled: train.gpus: Extra inputs are not permitted" in text


@pytest.mark.parametrize(
    ("arguments", "complaints"),
    [
        (["generate", "--colour", "red"], ["No such option '--colour'", "raft generate --help"]),
        (["fly"], ["No such command 'fly'"]),
        (["generate", "--output", "x"], ["--documents is missing", "raft generate --help"]),
        (
            ["generate", "--teacher", "extractive", "--documents", "d",
            "--output", "x", "--oracle-probability", "1.5"],
            ["--oracle-probability '1.5'", "a number, >= 0, <= 1"],
        ),
        (
            ["generate", "--documents", "d", "--output", "x", "--teacher", "oracle"],
            ["--teacher 'oracle'", "openai | vllm | extractive"],
        ),
        (
            ["train", "--dataset", "d", "--base-model", "m", "--output", "x", "--rank", "many"],
            ["--rank 'many'", "a whole number, >= 1, <= 512"],
        ),
        (
            ["train", "--dataset", "d", "--base-model", "m", "--output", "x",
             "--gradient-checkpointing", "perhaps"],
            ["--gradient-checkpointing 'perhaps'", "true | false"],
        ),
        (
            ["generate", "--teacher", "extractive", "--documents", "no/such", "--output", "x"],
            ["no/such: no such file"],
        ),
        (
            ["generate", "--documents", "d", "--output", "x", "--teacher", "me", "--seed", "foo"],
            [
                "--teacher 'me' (allowed: openai | vllm | extractive)\n",
                "--seed 'foo' (allowed: a whole number, >= 0",
            ],
        ),
        (
            ["train", "--dataset", "d", "--base-model", "m", "--output", "x", "--gpu", "a1"],
            ["--gpu 'a1' (allowed: a100-40gb | a100-80gb | h100 | h200 | l4)\n"],
        ),
        (["train", "--rnk", "8"], ["error: No such option '--rnk'", "\n  raft train --help"]),
        (["plan", "--base-model", "m"], ["error: Missing option '--gpu'", "raft plan --help"]),
        (["trian"], ["error: No such command 'trian'", "\n  raft --help"]),
        (["train", "--dataset", "no/such", "--base-model", "m", "--output", "x"],
         ["no/such: no such file or folder", "Check --dataset"]),
    ],
)  # fmt: skip
def test_a_users_mistake_is_explained_and_exits_2(
    arguments: list[str],
    complaints: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = errors(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in text
    for complaint in complaints:
        assert complaint in text


def test_our_own_fault_exits_1_and_debug_shows_where(
    texts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from components.generate import generate

    def broken(*_: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(generate, "read_corpus", broken)
    words = ("generate", "--teacher", "extractive", "--documents")
    arguments = (*words, texts, "--output", tmp_path / "out")
    code, text = errors(capsys, *arguments)
    assert code == 1
    assert "error: ZeroDivisionError: boom" in text and "--debug" in text
    code, text = errors(capsys, *arguments, "--debug")
    assert code == 1
    assert "Traceback" in text and "in broken" in text and "ZeroDivisionError: boom" in text


def test_flags_arrive_as_kubeflow_writes_them(texts: Path, tmp_path: Path, raft: Raft) -> None:
    done = raft(
        "generate", "--teacher", "extractive", "--documents", texts, "--output", tmp_path / "out",
        "--oracle-probability", "1.000000", "--distractors", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "9 training and 1 validation row\n" in done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("text", ['["q_proj", "v_proj"]', "q_proj,v_proj", "q_proj, v_proj"])
def test_lists_are_json_or_words(text: str) -> None:
    from components.train.config import TrainConfig

    given = {"dataset": "d", "base_model": "m", "output": "o", "target_modules": text}
    assert TrainConfig.parse(given).target_modules == ("q_proj", "v_proj")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["--version"])
    assert not leave.value.code
    assert capsys.readouterr().out.startswith("raft, version ")


def test_the_shell_completes_commands_and_flags() -> None:
    def completed(words: str) -> str:
        asked = {"_RAFT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "2"}
        program = "import sys; sys.argv = ['raft']; from pipelines.cli import main; main()"
        return subprocess.run(
            [sys.executable, "-c", program], env=os.environ | asked, capture_output=True, text=True
        ).stdout

    assert "plain,--rank\n" in completed("raft train --ra")


def test_debug_shows_the_cause_of_a_users_mistake_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "--dataset", tmp_path / "none", "--output", tmp_path / "x"]
    code, text = errors(capsys, *arguments, "--format", "nothing")
    assert code == 2 and "Traceback" not in text
    code, text = errors(capsys, *arguments, "--format", "nothing", "--debug")
    assert code == 2
    assert "pydantic_core._pydantic_core.ValidationError" in text, "what ours was raised from"
    assert text.count("Traceback") == 2
