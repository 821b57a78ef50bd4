"""`raft compile` writes the committed file, and `--check` compares every byte of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from components.core.hardware import GPU_STEPS
from pipelines import compile
from pipelines.compile import compiled
from pipelines.parameters import load
from tests.conftest import REPOSITORY, Raft
from tests.pipelines.conftest import Leave, parse_pipeline, tasks_of

COMMITTED = REPOSITORY / "pipelines" / "raft.yaml"
PIPELINES = ("raft", "study")
WRITTEN = ("pipelines/raft.yaml", "pipelines/study.yaml", "docs/settings.md", "docs/kubeflow.md")


def test_the_committed_pipeline_is_what_the_sources_compile_to(raft: Raft) -> None:
    """In a process of its own, which has another order of sets."""
    result = raft("compile", "--check")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "".join(f"{name} is up to date\n" for name in WRITTEN)


def test_a_byte_more_or_less_or_a_missing_file_fails_the_check(
    tmp_path: Path, leave: Leave, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = COMMITTED.read_text()
    monkeypatch.setattr(compile, "compiled", lambda *_, **__: text)
    edited = tmp_path / "raft.yaml"
    command = ("compile", "--check", "--output", edited)
    for content in (text.replace("raft-", "raf-", 1), text + "\n", text + "\r", ""):
        edited.write_text(content, newline="")
        code, _, err = leave(*command)
        assert code == 2
        assert f"{edited} is missing, or not what the sources comp" in err
        assert edited.read_bytes() == content.encode(), "a check must not write"
    edited.write_text(text)
    assert leave(*command)[0] == 0
    edited.unlink()
    assert leave(*command)[0] == 2 and not edited.exists()


def test_an_overlay_compiles_beside_the_committed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave: Leave
) -> None:
    monkeypatch.chdir(tmp_path)
    written = "wrote raft-h100.yaml\nwrote study-h100.yaml\n"
    assert leave("compile", "--overlay", "h100") == (0, "", written)
    text = (tmp_path / "raft-h100.yaml").read_text()
    assert text.count("gke-accelerator: nvidia-h100-80gb") == 3, "of the GPU steps"
    stale = ("compile", "--overlay", "l4", "--check", "--output", "raft-h100.yaml")
    code, _, err = leave(*stale)
    assert code == 2
    assert "raft-h100.yaml is missing, or not what" in err


@pytest.mark.parametrize("name", PIPELINES)
def test_a_volume_is_the_cache_of_the_steps_that_load_models(name: str) -> None:
    pipeline = parse_pipeline(compiled(name=name, cache_volume="models"))
    mounts = pipeline["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    with_cache = {step.removeprefix("exec-") for step, pod in mounts.items() if "pvcMount" in pod}
    assert with_cache == set(GPU_STEPS)
    for step in GPU_STEPS:
        (mount,) = mounts[f"exec-{step}"]["pvcMount"]
        assert (mount["constant"], mount["mountPath"]) == ("models", "/cache")
        executor = pipeline["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
        assert {"name": "RAFT_CACHE", "value": "/cache"} in executor["env"]
        assert "constant" not in str(tasks_of(pipeline)[step]["inputs"]["parameters"]["state"])


def test_the_studys_trials_can_be_limited(tmp_path: Path, leave: Leave) -> None:
    output = tmp_path / "study.yaml"
    options = ("--parallelism", 2, "--cache-volume", "models", "--output", output)
    code, _, err = leave("compile", "--pipeline", "study", *options)
    assert code == 0
    assert "models: trials on several nodes at once need its mode ReadWriteMany" in err
    assert load(output).at_once == 2
    assert load(COMMITTED.with_name("study.yaml")).at_once == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--overlay", "h10"),
         "--overlay 'h10': no such overlay (allowed: a100-80gb, compute-class, cpu-smoke, "
         "flex-start, h100, h200, kueue, l4, spot)"),
        (("--pipeline", "raft", "--parallelism", "2"), "--parallelism: the pipeline raft has no"),
        (("--overlay", "no/where"), "no/where: no kustomization.yaml there"),
    ],
)  # fmt: skip
def test_a_source_that_is_not_there(arguments: tuple[str, ...], problem: str, leave: Leave) -> None:
    code, _, err = leave("compile", *arguments)
    assert code == 2
    assert err.startswith(f"error: {problem}")


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
