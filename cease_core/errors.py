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


def one_line(said: object, most: int = 160) -> str:
    """What another program said, as a part of a sentence: its first line, cut after ``most`` visible letters.

    Parameters
    ----------
    said
        Its message, or the exception that carries it; one without a message gives its name.
    most
        Letters that are kept.
    """
    first = (str(said).strip().splitlines() or [type(said).__name__])[0]
    shown = "".join(letter for letter in first if letter.isprintable()).rstrip(".")
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def first_fault(error: ValidationError, whole: str) -> str:
    """The first thing that a validation found wrong, after its place.

    Parameters
    ----------
    whole
        What the place is called where it is not a single entry.
    """
    first = error.errors()[0]
    where = one_line(".".join(str(part) for part in first["loc"])) if first["loc"] else whole
    if first["type"] == "extra_forbidden":
        return f"{where}: there is no such entry"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"
