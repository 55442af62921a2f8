"""The one exception that reaches a user as it is, and what it quotes of a validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class CeaseError(ValueError):
    """Input that cannot be used, said in one sentence that ends with what to do.

    The message is shown unchanged by the command line (exit code 2) and by napari's notifications,
    so it names the file or value at fault and never a stack frame.
    """


def first_fault(error: ValidationError, whole: str) -> str:
    """The first thing that a validation found wrong, after its place.

    Parameters
    ----------
    whole
        What the place is called where it is not a single entry.
    """
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or whole
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no such entry"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
