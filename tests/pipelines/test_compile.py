"""`raft compile` writes the committed file, and `--check` compares every byte of it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.pipelines.conftest import ROOT

COMMITTED = ROOT / "pipelines" / "raft.yaml"


def raft_compile(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "compile", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
    )


def test_the_committed_pipeline_is_what_the_sources_compile_to() -> None:
    result = raft_compile("--check")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for hash_seed in ("1", "2"):
        output = tmp_path / hash_seed / "raft.yaml"
        assert raft_compile("--output", str(output), hash_seed=hash_seed).returncode == 0
        assert output.read_bytes() == COMMITTED.read_bytes()


def test_an_edited_file_fails_the_check(tmp_path: Path) -> None:
    edited = tmp_path / "raft.yaml"
    text = COMMITTED.read_text()
    edited.write_text(text.replace("count: '1'", "count: '2'", 1))
    result = raft_compile("--check", "--output", str(edited))
    assert result.returncode == 2
    assert "-            count: '2'\n+            count: '1'\n" in result.stderr
    assert f"raft compile --output {edited}" in result.stderr
    assert len(result.stderr.splitlines()) < 12
    assert edited.read_text() != text, "a check must not write"

    edited.write_text(text + "\n")
    assert raft_compile("--check", "--output", str(edited)).returncode == 2


def test_a_file_of_another_pipeline_gives_a_short_answer(tmp_path: Path) -> None:
    other = tmp_path / "raft.yaml"
    other.write_text("x: 1\n" * 500)
    result = raft_compile("--check", "--output", str(other))
    assert result.returncode == 2
    assert "lines more" in result.stderr
    assert len(result.stderr.splitlines()) < 30


def test_a_missing_file_fails_the_check(tmp_path: Path) -> None:
    missing = tmp_path / "raft.yaml"
    result = raft_compile("--check", "--output", str(missing))
    assert result.returncode == 2
    assert f"{missing}: No such file" in result.stderr
    assert "raft compile" in result.stderr
    assert not missing.exists()


def test_the_command_line_needs_no_kfp() -> None:
    program = (
        "import sys; sys.modules['kfp'] = None\n"
        "import pipelines.cli\n"
        "pipelines.cli.main(sys.argv[1:])"
    )
    for arguments, code in ((["train", "--help"], 0), (["compile"], 2)):
        result = subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert result.returncode == code, result.stderr
    assert "kfp is not installed" in result.stderr
    assert "pip install" in result.stderr
