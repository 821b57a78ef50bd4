"""A Docker engine for the tests in this folder, started once."""

import os
from collections.abc import Iterator

import pytest

from tests.docker.engine import NoEngineError, engine


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Address of an engine. Where none can be had a laptop skips, but CI fails."""
    running = engine()
    try:
        address = running.__enter__()
    except NoEngineError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = address  # what the docker library, and so kfp.local, reads
    try:
        yield address
    finally:
        running.__exit__(None, None, None)
        if before is None:
            del os.environ["DOCKER_HOST"]
        else:
            os.environ["DOCKER_HOST"] = before
