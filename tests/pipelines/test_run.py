"""`raft run`: all stages from one file; and the last lines of every command."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from components.core.records import QuantizationReport
from components.core.storage import MANIFEST, write_json
from pipelines import run
from pipelines.cli import main, raft
from pipelines.run import FOLDERS, flags_of, plan
from pipelines.stages import COMMANDS, STAGES, config_class, ending
from tests.conftest import REPOSITORY, Raft
from tests.core.test_kubeflow import REPORT
from tests.pipelines.test_cli import errors


@pytest.fixture
def file(texts: Path, demo_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "parameters.yaml"
    path.write_text(
        f"documents: {texts}\nteacher: extractive\nbase_model: {demo_model}\nepochs: 1\n"
        "distractors: 1\nmax_questions: 2\narms: [base, raft]\nnode_selector: {pool: gpus}\n"
    )
    return path


@pytest.mark.timeout(600)
def test_all_stages_run_once_and_their_pages_are_linked(
    file: Path, tmp_path: Path, raft: Raft
) -> None:
    output = tmp_path / "a run"
    done = raft("run", file, "--output", output)
    assert done.returncode == 0, done.stderr
    assert "of a cluster, and ignored here: node_selector" in done.stderr
    assert done.stderr.count("next:") == 1, "a stage of a run does not name the next one"
    made = {name: (output / name / MANIFEST).stat().st_mtime_ns for name in FOLDERS.values()}
    pages = {name: (output / name / "report.html").read_text() for name in FOLDERS.values()}
    links = {
        name: re.findall(r'href="\.\./(\w+)/report.html"', page) for name, page in pages.items()
    }
    assert links == {
        "dataset": [],
        "adapter": ["dataset"],
        "quantization": ["dataset", "adapter"],
        "evaluation": ["dataset", "adapter", "quantization"],
    }
    assert "quantize-check" in (output / "summary.md").read_text()

    again = raft("run", file, "--output", output)
    assert again.returncode == 0, again.stderr
    assert made == {name: (output / name / MANIFEST).stat().st_mtime_ns for name in made}

    stopped = raft("run", file, "--output", output, "--set", "rank=8")
    assert stopped.returncode == 2, "another adapter would replace a finished one"
    assert f"to resume: raft run {file} --output '{output}' --set rank=8" in stopped.stderr


def test_a_closed_gate_ends_the_run_before_eval(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = []

    def stage(name: str, flags: list[str]) -> int:
        done.append(name)
        if name == "quantize-check":
            folder = Path(flags[flags.index("--output") + 1])
            folder.mkdir(parents=True)
            write_json(
                folder / QuantizationReport.FILE, REPORT.model_copy(update={"decision": "stop"})
            )
        return 0

    monkeypatch.setattr(run, "_run_stage", stage)
    assert run.run_file(file, (), tmp_path / "run") == 0
    assert done == ["generate", "train", "quantize-check"]
    text = capsys.readouterr().err
    assert "gate is stop: no evaluation" in text
    assert f"next: open {tmp_path}/run/quantization/report.html" in text
    assert (tmp_path / "run" / "summary.md").exists()


@pytest.mark.parametrize(
    ("sent", "code", "how"),
    [(signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
def test_what_stops_a_run_stops_its_stage_too(
    texts: Path, tmp_path: Path, sent: signal.Signals, code: int, how: str
) -> None:
    """Ctrl-C reaches all processes of a terminal, SIGTERM the first alone."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        path = tmp_path / "parameters.yaml"
        path.write_text(
            f"documents: {texts}\nteacher: openai\nteacher_model: m\nteacher_endpoint: {address}\n"
        )
        words = ["-m", "pipelines", "run", path, "--output", tmp_path / "run"]
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        silent.accept()  # the stage is at work
        (os.killpg if sent == signal.SIGINT else os.kill)(process.pid, sent)
        _, err = process.communicate(timeout=120)  # ends when the stage has let go of the pipe
    assert process.returncode == code, err
    assert "no response of a teacher is paid for twice" in err
    assert f"{how}; the same command skips the stages that are finished" in err.splitlines()[-1]


def test_every_problem_is_named_with_its_line_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("documents: docs\ncolour: red\nteacher: extractive\nrank: many\n")
    code, text = errors(capsys, "run", path, "--set", "max_questions=0")
    assert code == 2
    assert f"{path}:2: colour: unknown parameter" in text
    assert f"{path}:4: rank 'many' (allowed: a whole number" in text
    assert "--set: max_questions '0' (allowed: a whole number, >= 1)" in text


def test_a_file_for_a_cluster_gives_the_same_settings_here(file: Path, tmp_path: Path) -> None:
    """And flags carry them to the stages unchanged."""
    given = {"documents": "d", "questions": "q.json", "teacher": "extractive", "arms": ["raft"],
             "rank": 8, "load_in_4bit": True, "gate": "stop", "seed": 5}  # fmt: skip
    configs = plan(given, {}, tmp_path)
    assert list(configs) == list(STAGES)
    assert configs["generate"].eval_questions == "q.json", "no row may give a question away"
    assert configs["train"].dataset == configs["generate"].output
    assert configs["eval"].quantization == configs["quantize-check"].output
    for stage, config in configs.items():
        context = raft.commands[stage].make_context(stage, flags_of(config))
        assert config_class(stage).parse(raft.commands[stage].settings(context)) == config


def test_a_default_that_is_given_wins_over_the_gpus_settings(tmp_path: Path) -> None:
    given = {"documents": "d", "teacher": "extractive", "gpu": "l4", "load_in_4bit": False}
    config = plan(given, {}, tmp_path)["train"]
    context = raft.commands["train"].make_context("train", flags_of(config))
    settings = raft.commands["train"].settings(context)
    assert (settings["load_in_4bit"], settings["batch_size"]) == ("false", "1")


def test_questions_on_the_hub_are_asked_but_no_row_is_checked_against_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"documents": "d", "teacher": "extractive", "questions": "hotpotqa/hotpot_qa"}
    configs = plan(given, {}, tmp_path)
    assert (configs["generate"].eval_questions, configs["eval"].questions) == (
        "",
        given["questions"],
    )
    assert "hotpotqa/hotpot_qa is on the hub: rows are not checked" in capsys.readouterr().err


def test_arms_that_need_another_adapter_are_refused_before_anything_runs(tmp_path: Path) -> None:
    given = {"documents": "d", "teacher": "extractive", "target": "answer", "arms": ["raft"]}
    with pytest.raises(ConfigError, match=r"p.yaml:4: arms: raft needs an adapter trained as raft"):
        plan(given, {"arms": "p.yaml:4"}, tmp_path)


# ---- what comes last -----------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_stage_ends_with_the_next_command_filled_in(stage: str) -> None:
    _, name, *flags = shlex.split(COMMANDS[stage].example)
    flags[flags.index("--output") + 1] = "my run/x"
    context = raft.commands[name].make_context(name, flags)
    config = config_class(name).parse(raft.commands[name].settings(context))
    *_, last = ending(config)
    assert last.startswith("next: raft ")
    _, following, *given = shlex.split(last.removeprefix("next: "))
    assert following == STAGES[STAGES.index(stage) + 1]
    context = raft.commands[following].make_context(following, given)
    settings = config_class(following).parse(raft.commands[following].settings(context))
    assert settings.output.startswith("my run/")
    assert "my run/x" in settings.model_dump().values(), "what the stage has made"


def test_an_interruption_names_what_resumes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.cli.flags.run_stage", interrupted)
    flags = ["--dataset", "d", "--base-model", "m", "--output", tmp_path / "x"]
    code, text = errors(capsys, "train", *flags)
    assert (code, text.strip()) == (
        130, "interrupted; the same command resumes from the newest checkpoint",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("train", "trl", "train"),
        ("eval", "jinja2", "eval"),
        ("train", "google.cloud", "gcs"),
        ("check", "kubernetes", "pipelines"),
        ("check", "kfp.dsl", "pipelines"),
        ("check", "torch", "models"),
        ("check", "tantivy", "corpus"),
        ("check", "docx", "corpus"),
        ("check", "unknown", "all"),
    ],
)
def test_a_missing_library_names_the_one_extra(
    command: str,
    module: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr("pipelines.cli.flags.run_stage", missing)
    monkeypatch.setattr("pipelines.manifests.check_manifests", missing)
    flags = shlex.split(COMMANDS[command].example)[2:] if command in COMMANDS else []
    code, text = errors(capsys, command, *flags)
    assert code == 2
    assert f"error: {module} is not installed\n  pip install 'raft-pipelines[{extra}]'" in text


@pytest.mark.parametrize("words", [[], ["help"], ["--help"]])
def test_raft_and_raft_help_show_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(words)
    assert not leave.value.code
    assert "raft demo --output" in capsys.readouterr().out
