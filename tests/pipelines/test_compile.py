"""`raft compile` writes the committed file, and `--check` compares every byte of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.k8s import kustomize
from pipelines.k8s.located import Text
from pipelines.manifests import OVERLAYS
from tests.conftest import REPOSITORY, Raft
from tests.pipelines.conftest import parse_pipeline, tasks_of

COMMITTED = REPOSITORY / "pipelines" / "raft.yaml"
PIPELINES = ("raft", "study")
WRITTEN = ("pipelines/raft.yaml", "pipelines/study.yaml", "docs/settings.md")


def test_the_committed_pipeline_is_what_the_sources_compile_to(raft: Raft) -> None:
    result = raft("compile", "--check")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "".join(f"{name} is up to date\n" for name in WRITTEN)


@pytest.mark.parametrize("name", PIPELINES)
def test_compiling_again_gives_the_same_bytes(name: str, raft: Raft, tmp_path: Path) -> None:
    # Another process has another order of sets.
    output = tmp_path / "new" / f"{name}.yaml"
    assert raft("compile", "--pipeline", name, "--output", output).returncode == 0
    assert output.read_bytes() == COMMITTED.with_name(f"{name}.yaml").read_bytes()


def test_an_edited_study_fails_the_check(raft: Raft, tmp_path: Path) -> None:
    edited = tmp_path / "study.yaml"
    text = COMMITTED.with_name("study.yaml").read_text()
    edited.write_text(text.replace("raft-study", "raft-stud"))
    result = raft("compile", "--check", "--pipeline", "study", "--output", edited)
    assert result.returncode == 2
    assert f"raft compile --pipeline study --output {edited}" in result.stderr


def test_an_edited_file_fails_the_check(raft: Raft, tmp_path: Path) -> None:
    edited = tmp_path / "raft.yaml"
    text = COMMITTED.read_text().replace("gpu_count: '1'", "gpu_count: '2'", 1)
    edited.write_text(text)
    result = raft("compile", "--check", "--output", edited)
    assert result.returncode == 2
    assert "gpu_count: '2'\n+" in result.stderr
    assert f"raft compile --output {edited}" in result.stderr
    assert len(result.stderr.splitlines()) < 12
    assert edited.read_text() == text, "a check must not write"


def test_a_byte_more_fails_the_check(raft: Raft, tmp_path: Path) -> None:
    for name, ending in {"newline": b"\n", "carriage return": b"\r"}.items():
        edited = tmp_path / name
        edited.write_bytes(COMMITTED.read_bytes() + ending)
        assert raft("compile", "--check", "--output", edited).returncode == 2, name


def test_a_file_of_another_pipeline_gets_a_short_answer(raft: Raft, tmp_path: Path) -> None:
    other = tmp_path / "raft.yaml"
    other.write_text("x: 1\n" * 500)
    result = raft("compile", "--check", "--output", other)
    assert result.returncode == 2
    assert "more lines" in result.stderr
    assert len(result.stderr.splitlines()) < 30


def test_a_missing_file_fails_the_check(raft: Raft, tmp_path: Path) -> None:
    missing = tmp_path / "raft.yaml"
    result = raft("compile", "--check", "--output", missing)
    assert result.returncode == 2
    assert f"{missing}: No such file" in result.stderr
    assert f"raft compile --output {missing}" in result.stderr
    assert not missing.exists()


def test_an_overlay_compiles_beside_the_committed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, text: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", Text(text, "<stdin>"))
        with pytest.raises(SystemExit) as leave:
            main(["compile", *arguments])
        return int(leave.value.code or 0), capsys.readouterr().err

    assert run("--overlay", "h100") == (0, "wrote raft-h100.yaml\nwrote study-h100.yaml\n")
    compiled = (tmp_path / "raft-h100.yaml").read_text()
    assert (
        compiled.count("gke-accelerator: nvidia-h100-80gb") == 3
    )  # of train, quantize-check, eval
    assert run("--overlay", "h100", "--check")[0] == 0
    code, stale = run("--overlay", "l4", "--check", "--output", "raft-h100.yaml")
    assert code == 2
    assert "raft compile --overlay l4 --output raft-h100.yaml" in stale

    folder = OVERLAYS / "h100"
    objects = yaml.safe_dump_all(document.value for document in kustomize.render(folder))
    assert run("--manifests", "-", text=objects)[0] == 0
    assert (tmp_path / "raft-manifests.yaml").read_text() == compiled
    (tmp_path / "objects.yaml").write_text(objects)
    assert run("--manifests", "objects.yaml", "--check")[0] == 0
    code, broken = run("--manifests", "-", text=objects.replace("160Gi", "160GB", 1))
    assert code == 2
    line = objects.split("160Gi")[0].count("\n") + 1
    assert f"<stdin>:{line}: spec.template.spec.containers.0.resources" in broken


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--overlay", "h10"),
         "--overlay 'h10': no such overlay (allowed: a100-80gb, cpu-smoke, h100, h200, kueue, "
         "l4, spot)"),
        (("--overlay", "no/where"), "no/where: no kustomization.yaml there"),
        (("--overlay", "l4", "--manifests", "-"), "--overlay and --manifests: give one of the two"),
        (("--manifests", "nowhere.yaml"), "nowhere.yaml: No such file"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_there(
    arguments: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["compile", *arguments])
    assert leave.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {problem}")


def test_the_command_line_needs_no_kfp() -> None:
    program = (
        "import sys; sys.modules['kfp'] = None\n"
        "import pipelines.cli\n"
        "pipelines.cli.main(sys.argv[1:])"
    )
    for arguments, code in ((["train", "--help"], 0), (["check", "-h"], 0), (["compile"], 2)):
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert result.returncode == code, result.stderr
    assert "kfp is not installed" in result.stderr
    assert "pip install" in result.stderr


def test_shards_are_steps_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leave:
        main(["compile", "--shards", "3"])
    assert leave.value.code == 0
    assert capsys.readouterr().err == "wrote raft-3-shards.yaml\n"
    pipeline = parse_pipeline((tmp_path / "raft-3-shards.yaml").read_text())
    (loop,) = (
        task
        for component in pipeline["components"].values()
        for task in component.get("dag", {}).get("tasks", {}).values()
        if "parameterIterator" in task
    )
    assert json.loads(loop["parameterIterator"]["items"]["raw"]) == ["1/3", "2/3", "3/3"]
    train = tasks_of(pipeline)["train"]["inputs"]["artifacts"]["dataset"]
    assert train["taskOutputArtifact"]["producerTask"] == "merge"
    with pytest.raises(SystemExit) as leave:
        main(["compile", "--shards", "3", "--pipeline", "study"])
    assert leave.value.code == 2
    assert "--shards: only the pipeline raft has shards" in capsys.readouterr().err
