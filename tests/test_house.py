"""The rules of the house that a reader counts on, checked on the code itself."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.tree import tree

STAGES = ("generate", "train", "quantize_check", "eval", "use")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_stages_import_neither_each_other_nor_pipelines() -> None:
    checked = 0
    for stage in STAGES:
        for path in (REPOSITORY / "components" / stage).rglob("*.py"):
            ours = {name.split(".")[1] for name in imports(path) if name.startswith("components.")}
            assert ours <= {"core", stage}, path
            assert not any(name.split(".")[0] == "pipelines" for name in imports(path)), path
            checked += 1
    assert checked >= 25


def test_no_file_of_pipelines_imports_one_that_imports_it() -> None:
    """Not even inside a function, and not by way of others."""
    paths = {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (REPOSITORY / "pipelines").rglob("*.py")
    }
    assert len(paths) >= 35
    graph = {name: (imports(path) & paths.keys()) - {name} for name, path in paths.items()}
    TopologicalSorter(graph).prepare()


def test_only_declarations_know_kfp_and_only_storage_knows_gcs() -> None:
    files = [
        path for room in ("components", "pipelines") for path in (REPOSITORY / room).rglob("*.py")
    ]
    assert len(files) >= 35
    know_kfp = {path.name for path in files if any(n.split(".")[0] == "kfp" for n in imports(path))}
    know_kubernetes = {
        path.name for path in files if any(n.split(".")[0] == "kubernetes" for n in imports(path))
    }
    know_gcs = {
        path.parent.name for path in files if any("google.cloud" in n for n in imports(path))
    }
    assert know_kfp <= {
        "component.py", "raft.py", "study.py", "light_steps.py", "steps.py", "compile.py",
        "local.py", "resources.py", "kubeflow.py",
    }  # fmt: skip
    assert know_kubernetes == {"connection.py", "images.py", "values.py"}
    assert know_gcs == {"storage"}


def test_the_tree_lists_every_file() -> None:
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert tree() in page, "run: python -m tests.tree"


def test_the_readme_is_short() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 200


def test_links_between_pages_lead_somewhere() -> None:
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
    assert len(pages) >= 10
    for page in pages:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("folder", ["components", "pipelines", "k8s", "images", "tests"])
def test_no_unsafe_loading(folder: str) -> None:
    pattern = re.compile(r"trust_remote_code=True|pickle\.load|yaml\.load\(|torch\.load\(")
    for path in (REPOSITORY / folder).rglob("*.py"):
        if path != Path(__file__):
            assert not pattern.search(path.read_text(encoding="utf-8")), path
