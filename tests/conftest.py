"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small lose time to a second thread, most of all on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _consent_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a test agrees to is not agreed to by the user who runs it."""
    folder = tmp_path_factory.mktemp("consent")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CEASE_CONSENT", str(folder))
        yield folder
