"""Attacks by name, with parameters as people write them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from cease_core.attacks import ATTACKS
from cease_core.attacks.base import Attack
from cease_core.errors import CeaseError


def parameters(kind: type[Attack]) -> dict[str, Any]:
    """Parameters of an attack that can be written as text, with their types.

    Examples
    --------
    >>> parameters(ATTACKS["pgd"])["steps"]
    <class 'int'>
    """
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name not in ("source", "inner", "terms")}


def build_attack(name: str, **written: object) -> Attack:
    """An attack of ``ATTACKS``.

    Parameters
    ----------
    name
        Key of ``ATTACKS``, in any case.
    **written
        Its parameters, as values or as text: ``steps="40"``, ``losses="js,soft_dice"``.

    Raises
    ------
    CeaseError
        If there is no such attack or parameter, or a value cannot be read.

    Examples
    --------
    >>> build_attack("PGD", steps="40", norm="l2").steps
    40
    """
    key = name.lower()
    if key not in ATTACKS:
        raise CeaseError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}.")
    kind = ATTACKS[key]
    known = parameters(kind)
    values: dict[str, Any] = {}
    for parameter, value in written.items():
        if parameter not in known:
            raise CeaseError(f"{kind.about.title} has no parameter {parameter!r}; it has {', '.join(sorted(known))}.")
        values[parameter] = _read(parameter, value, known[parameter], kind)
    return kind(**values)


def _read(parameter: str, value: object, hint: Any, kind: type[Attack]) -> Any:
    # Names are checked by the attack itself, whose sentence says what to choose from.
    if parameter == "loss" or typing.get_origin(hint) is typing.Literal:
        return value
    if isinstance(value, str) and typing.get_origin(hint) is tuple:
        value = [part.strip() for part in value.split(",") if part.strip()]
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise CeaseError(f"{parameter} of {kind.about.title} is {value!r}: {reason}.") from error


def describe(attack: Attack) -> dict[str, Any]:
    """Everything an attack was set to, in plain values for JSON.

    Examples
    --------
    >>> describe(ATTACKS["fgsm"]())["attack"]
    'fgsm'
    """
    name = next((n for n, kind in ATTACKS.items() if kind is type(attack)), type(attack).__name__)
    fields = {f.name: _plain(getattr(attack, f.name)) for f in dataclasses.fields(attack)}
    return {"attack": name, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Attack):
        return describe(value)
    if isinstance(value, nn.Module):
        return getattr(getattr(value, "card", None), "name", type(value).__name__)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return value
