"""What the tests of the pipeline share: the compiled YAML, and Kubeflow's way with values."""

import json
import re

import pytest
import yaml

PLACEHOLDER = re.compile(
    r"\{\{\$\.(?:inputs|outputs)\.(parameters|artifacts)\['(\w+)'\](?:\.path)?\}\}"
)


def parse_pipeline(text: str) -> dict:
    """Both documents of a compiled pipeline: the specification and the Kubernetes settings."""
    specification, platforms = yaml.safe_load_all(text)
    return specification | platforms


def as_kubeflow(value: object) -> str:
    """A parameter's value as the backend writes it into a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:f}"
    if isinstance(value, list | dict):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def render(arguments: list[str], values: dict[str, object]) -> list[str]:
    """Fill placeholders: parameters from `values`, artifacts with a path of their name."""

    def fill(match: re.Match[str]) -> str:
        kind, name = match.groups()
        return as_kubeflow(values[name]) if kind == "parameters" else f"/artifacts/{name}"

    return [PLACEHOLDER.sub(fill, argument) for argument in arguments]


def tasks_of(pipeline: dict) -> dict[str, dict]:
    """Every container task by name, however deep it is nested."""
    dags = [pipeline["root"], *pipeline["components"].values()]
    return {
        name: task
        for component in dags
        for name, task in component.get("dag", {}).get("tasks", {}).items()
        if "dag" not in pipeline["components"][task["componentRef"]["name"]]
    }


@pytest.fixture(scope="session")
def compiled_text() -> str:
    from pipelines.compile import compiled

    return compiled()


@pytest.fixture(scope="session")
def pipeline(compiled_text: str) -> dict:
    return parse_pipeline(compiled_text)


@pytest.fixture(scope="session")
def study() -> dict:
    from pipelines.compile import compiled

    return parse_pipeline(compiled(name="study"))
