"""The API server that tests of this folder may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.kube.api_server import ApiServer


@pytest.fixture
def server() -> Iterator[ApiServer]:
    running = ApiServer().start()
    yield running
    running.stop()
