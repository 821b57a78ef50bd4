"""A Docker engine for the tests in this folder, started once."""

import builtins
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.conftest import lacking
from tests.docker.engine import NoEngineError, engine
from tests.docker.images import build_images


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Address of an engine. Where none can be had a laptop skips, but CI fails."""
    with ExitStack() as stack:
        with required():
            address = stack.enter_context(engine())
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DOCKER_HOST", address)  # what docker reads, as a command and as a library
        yield address


@pytest.fixture(scope="session")
def images(docker_host: str) -> str:
    """Address of an engine that holds the CPU images of this checkout."""
    with required():
        build_images(docker_host)
    return docker_host


@contextmanager
def required() -> Iterator[None]:
    try:
        yield
    except NoEngineError as error:
        lacking(str(error))


@pytest.fixture(scope="module", autouse=True)
def own_print() -> Iterator[None]:
    """Give `print` back: kfp.local indents it, and its threads restore it in disorder."""
    before = builtins.print
    yield
    builtins.print = before


@pytest.fixture(scope="module", autouse=True)
def outputs_in_loops() -> Iterator[None]:
    """Hand earlier steps' outputs into a loop: kfp.local 2.17 hands over the loop's item."""
    from kfp.local.orchestrator import task_spec_utils as utils

    made = utils.create_parameter_loop_iteration_task_spec

    def repaired(task_spec: Any, item: Any, task_name: str) -> Any:
        iteration = made(task_spec, item, task_name)
        for name, given in task_spec.inputs.parameters.items():
            if given.HasField("task_output_parameter"):
                iteration.inputs.parameters[name].CopyFrom(given)
        return iteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "create_parameter_loop_iteration_task_spec", repaired)
        yield
