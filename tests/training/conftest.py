"""What tests of the training share."""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

import pytest
from discs import draw_discs

from cease_core.data import Case, find_cases, split_cases

Sides = tuple[list[Case], list[Case]]


@pytest.fixture(scope="session")
def disc_folder(tmp_path_factory: pytest.TempPathFactory):
    return draw_discs(tmp_path_factory.mktemp("discs"), 11)


@pytest.fixture(scope="session")
def sides(disc_folder) -> Sides:
    """Nine cases to train on, two to validate on."""
    return split_cases(find_cases(disc_folder), 0.2)


@pytest.fixture(scope="session")
def fresh() -> ForkServerContext:
    """Starts processes that share nothing with this one; the slow imports are made once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cease_core.training", "cease_core.data", "accelerate", "PIL.Image"])
    return context
