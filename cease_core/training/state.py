"""A run's state on disk: all that is needed to go on as if it had never stopped.

Random numbers are no part of it: all of them follow from the seed, the epoch and the batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from cease_core.errors import CeaseError

STATE = "training.pt"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state, replacing an older one only when the new one is complete.

    Raises
    ------
    CeaseError
        If the disk does not take it; the older state is still there.
    """
    scratch = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            # Else a machine that loses power may have renamed a file whose contents it never wrote.
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError for torch's writer
        scratch.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise CeaseError(
            f"cannot write {path}: {reason}; make room and resume, the last complete state is kept."
        ) from error


def load_state(path: Path, origin: Mapping[str, str]) -> dict[str, Any]:
    """Read a state.

    Parameters
    ----------
    origin
        What the run was started with, by name: all of it must be the same now.

    Raises
    ------
    CeaseError
        If it is damaged, or has another origin.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        kept = dict(state["origin"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, UnpicklingError) as error:
        raise CeaseError(f"{path} is damaged; start a new run in another folder.") from error
    changed = [name for name, value in origin.items() if kept.get(name) != value]
    if changed:
        raise CeaseError(
            f"{path} was written with another {' and another '.join(changed)}; resume with what started it, or start a "
            "new run in another folder."
        )
    return state
