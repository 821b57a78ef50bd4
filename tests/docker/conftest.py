"""A Docker engine for the tests in this folder, started once."""

import builtins
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.docker.engine import NoEngineError, engine


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Address of an engine. Where none can be had a laptop skips, but CI fails."""
    with ExitStack() as stack:
        try:
            address = stack.enter_context(engine())
        except NoEngineError as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
            pytest.skip(str(error))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("DOCKER_HOST", address)  # what the docker library, and so kfp.local, reads
        yield address


@pytest.fixture(scope="module", autouse=True)
def own_print() -> Iterator[None]:
    """Give `print` back: kfp.local indents it, and its threads restore it in disorder."""
    before = builtins.print
    yield
    builtins.print = before
