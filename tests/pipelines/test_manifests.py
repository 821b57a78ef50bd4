"""A Job manifest that the pipeline could not follow is refused."""

import shutil
from decimal import Decimal
from pathlib import Path

import pytest

from components.core.errors import ConfigError
from pipelines import manifests
from pipelines.compile import compiled
from pipelines.k8s.values import amount
from tests.pipelines.conftest import edit, line_of


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return Path(shutil.copytree(manifests.BASE, tmp_path / "base"))


def test_a_missing_or_broken_file_is_an_error(jobs: Path) -> None:
    path = jobs / "train.yaml"
    path.write_text("a: 1\nkind: [\n")
    with pytest.raises(ConfigError, match=r"train\.yaml:3: not YAML"):
        manifests.load_all(jobs)
    path.write_text("")
    with pytest.raises(ConfigError, match="no Job for train"):
        manifests.load_all(jobs)
    path.write_bytes(b"kind: \xff")
    with pytest.raises(ConfigError, match=r"train\.yaml: not UTF-8"):
        manifests.load_all(jobs)
    path.unlink()
    with pytest.raises(ConfigError, match=r"train\.yaml: No such file"):
        manifests.load_all(jobs)
    with pytest.raises(ConfigError, match=r"no kustomization\.yaml there"):
        manifests.load_all(jobs / "nowhere")


def test_a_fault_stops_the_compiler_with_file_and_line(jobs: Path) -> None:
    edit(jobs / "train.yaml", "restartPolicy: Never", "hostNetwork: true")
    with pytest.raises(ConfigError) as caught:
        compiled(jobs)
    line = line_of(jobs / "train.yaml", "hostNetwork")
    place = f"{jobs / 'train.yaml'}:{line}: spec.template.spec.hostNetwork: not understood"
    assert str(caught.value).splitlines()[-1].startswith(place)
    assert "allowed: serviceAccountName, priorityClassName" in str(caught.value)


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("8", "8"), ("0.5", "0.5"), ("500m", "0.5"), ("1Ki", "1024"), ("64Gi", "68719476736"),
     ("2G", "2000000000"), ("1Ti", "1099511627776"), ("3M", "3000000")],
)  # fmt: skip
def test_amounts(quantity: str, number: str) -> None:
    assert amount(quantity) == Decimal(number)


@pytest.mark.parametrize("flag", ["--target-modules=q_proj", "--rank=8"])
def test_a_flag_that_the_trials_of_a_study_set_is_refused(flag: str, jobs: Path) -> None:
    output = "            - --output=$(RAFT_RUN)/adapter\n"
    path, name = jobs / "train.yaml", flag.partition("=")[0]
    edit(path, output, f"{output}            - {flag}\n")
    with pytest.raises(ConfigError) as caught:
        compiled(jobs, "study")
    line = line_of(path, flag)
    assert str(caught.value) == (
        f"{path}:{line}: {name} has a value here, but in the pipeline it is a parameter"
    )
