"""``cease import``: a model that was made elsewhere into the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import ValidationError

from cease_core.errors import CeaseError, first_fault
from cease_core.models.checkpoint import load_card
from cease_core.models.foreign.drafts import Choices, Consent, Question, refuse
from cease_core.models.importing import import_any


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What was asked for; see ``cease import --help``.

    Parameters
    ----------
    about
        A YAML or JSON file with the fields of `Choices`.
    options
        Further fields as they were written, which go before the file's.
    agree
        Whether the user has already agreed to files that may run code.
    """

    source: Path
    about: Path | None
    options: dict[str, str]
    arguments: tuple[str, ...]
    agree: bool


def run_import(request: ImportRequest) -> int:
    """Import a model and say what came of it.

    Returns
    -------
    int
        Exit code 0.

    Raises
    ------
    CeaseError
        As `import_any`, or if an option is not understood.
    """
    done = import_any(request.source.expanduser(), choices(request), _consent(request))
    card = load_card(done.folder)
    print(f"{card.title} is in the library as {card.name}: {', '.join(c.name for c in card.classes)}; {done.folder}")
    for remark in done.remarks:
        print(f"  note: {remark}")
    return 0


def choices(request: ImportRequest) -> Choices:
    """What the user said, from the file and the options."""
    written: dict[str, Any] = _read(request.about) if request.about else {}
    written |= dict(_parsed(request.options))
    if request.arguments:
        written["args"] = {**(written.get("args") or {}), **dict(_argument(a) for a in request.arguments)}
    try:
        return Choices.model_validate(written)
    except ValidationError as error:
        raise CeaseError(f"{first_fault(error, 'the options')}; see `cease import --help`.") from error


def _parsed(options: dict[str, str]) -> Iterator[tuple[str, Any]]:
    for name, text in options.items():
        if name == "window":
            low, high = _numbers(name, text, 2)
            yield name, {"kind": "fixed", "low": low, "high": high}
        elif name == "spacing":
            yield name, _numbers(name, text)
        elif name in ("roi", "outputs"):
            yield name, [int(n) for n in _numbers(name, text)]
        elif name == "classes":
            yield name, [part.strip() for part in text.split(",")]
        elif name == "output":
            yield name, [int(part) if part.strip().isdecimal() else part.strip() for part in text.split(",")]
        else:
            yield name, text


def _numbers(name: str, text: str, count: int | None = None) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or count not in (None, len(numbers)):
        wanted = f"{count} numbers" if count else "numbers"
        raise CeaseError(f"--{name} {text!r} is not understood; write {wanted} with commas between them.")
    return numbers


def _argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise CeaseError(f"--arg {text!r} is not understood; write it as name=value, such as channels=[16,32,64].")
    try:
        return name.strip(), json.loads(value)
    except ValueError:
        return name.strip(), value.strip()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; give a readable YAML or JSON file.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CeaseError(f"{path} is neither YAML nor JSON; write fields such as `classes: [liver]`.") from error
    if not isinstance(found, dict):
        raise CeaseError(f"{path} holds no fields; write them as `classes: [liver]`, one a line.")
    return found


def _consent(request: ImportRequest) -> Consent:
    if request.agree:
        return lambda _: True
    if not sys.stdin.isatty():
        return refuse_with_option

    def ask(question: Question) -> bool:
        print(f"{question.path}\n  SHA-256 {question.sha256}\n  {question.why}")
        return typer.confirm("Do you trust where it is from, and open it?", default=False)

    return ask


def refuse_with_option(question: Question) -> bool:
    """Nobody is there to ask: the sentence names the option that agrees."""
    try:
        return refuse(question)
    except CeaseError as error:
        raise CeaseError(f"{str(error).rstrip('.')} (--agree).") from error
