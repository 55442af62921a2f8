"""Configurations of MONAI bundles, read without evaluating anything.

MONAI evaluates every text that begins with ``$`` as Python. Here such a text is parsed, and understood only if it is
made of plain values, references to other entries, sums of these and choices between them; all else stays unread.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml

from cease_core.errors import CeaseError

LIMIT = 2**20
"""Bytes that a configuration may have."""

MOST_ENTRIES = 10**5
"""Numbers, words and containers that may be made of one configuration: references can multiply."""

_LONGEST = 1000
_REFERENCE = re.compile(r"@([A-Za-z_]\w*(?:(?:#|::)\w+)*)")
_PLACEHOLDER = "reference_{}_"
# Names of MONAI's factories, which take the same word as text.
_FACTORY = re.compile(r"(?:monai\.networks\.layers\.)?(?:factories\.)?(?:Act|Conv|Dropout|Norm|Pool)\.([A-Z_]+)")


class NotPlainError(CeaseError):
    """An entry that would have to be evaluated, or that refers to nothing."""


def parse(text: bytes, name: str) -> dict[str, Any]:
    """The mapping in a JSON or YAML file.

    Raises
    ------
    CeaseError
        If it is too large or no such file.
    """
    if len(text) > LIMIT:
        raise CeaseError(
            f"{name} is larger than {LIMIT // 2**20} MiB, which no configuration is; choose another bundle."
        )
    try:
        tree = json.loads(text) if name.endswith(".json") else yaml.safe_load(text)
    # Damaged text shows in many ways, among them as an endless nesting.
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CeaseError(f"{name} is no valid {name.rpartition('.')[2].upper()}; copy or export it again.") from error
    if not isinstance(tree, dict):
        raise CeaseError(f"{name} does not hold entries by name; copy or export it again.")
    return tree


class Config:
    """A configuration whose references are looked up.

    Parameters
    ----------
    tree
        As `parse` returns it.
    name
        Of its file, for sentences.
    """

    def __init__(self, tree: Mapping[str, Any], name: str) -> None:
        self.tree = tree
        self.name = name
        self._left = MOST_ENTRIES
        self._open: list[str] = []

    def find(self, *ids: str) -> Any:
        """The first entry that there is among ``ids`` (``"validate#inferer"``), references followed; else None."""
        for id in ids:
            try:
                return self.followed(self._entry(id), id)
            except KeyError:
                continue
        return None

    def followed(self, value: Any, where: str) -> Any:
        """What a reference refers to, without looking inside; other values as they are.

        Raises
        ------
        NotPlainError
            If it refers to nothing, or to itself.
        """
        if isinstance(value, str) and (value[:1] == "$" or _REFERENCE.fullmatch(value)):
            return self._text(value, where, deep=False)
        return value

    def plain(self, value: Any, where: str) -> Any:
        """A value with every reference in it resolved.

        Raises
        ------
        NotPlainError
            If something in it would have to be evaluated; the sentence names the entry.
        """
        self._left -= 1
        if self._left < 0:
            raise NotPlainError(f"{self.name}: {where} unfolds to more entries than any network has; correct it.")
        if isinstance(value, str):
            return self._text(value, where, deep=True)
        if isinstance(value, Mapping):
            return {str(key): self.plain(entry, f"{where}.{key}") for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
        return value

    def _entry(self, id: str) -> Any:
        value: Any = self.tree
        for part in re.split("#|::", id):
            if isinstance(value, str):
                value = self.followed(value, id)
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, Mapping) and part in value:
                value = value[part]
            else:
                raise KeyError(id)
        return value

    def _text(self, text: str, where: str, *, deep: bool) -> Any:
        if _REFERENCE.fullmatch(text):
            return self._referred(text[1:], where, deep)
        if text[:1] in ("@", "%"):
            raise self._refused(text, where)
        if text[:1] != "$":
            return text
        if len(text) > _LONGEST:
            raise self._refused(text, where)
        named = _FACTORY.fullmatch(text[1:].strip())
        if named:
            return named[1].lower()
        ids: list[str] = []

        def place(found: re.Match[str]) -> str:
            ids.append(found[1])
            return _PLACEHOLDER.format(len(ids) - 1)

        try:
            # "@" is no beginning of a name in Python, so a reference cannot be mistaken for one.
            parsed = ast.parse(_REFERENCE.sub(place, text[1:]).strip(), mode="eval").body
            names = {_PLACEHOLDER.format(i): id for i, id in enumerate(ids)}
            return self._value(parsed, names, where, deep)
        except NotPlainError:
            raise
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise self._refused(text, where) from error

    def _referred(self, id: str, where: str, deep: bool) -> Any:
        if id in self._open:
            raise NotPlainError(f"{self.name}: {where} refers to itself by way of {id!r}; correct it.")
        self._open.append(id)
        try:
            value = self._entry(id)
            return self.plain(value, id) if deep else self.followed(value, id)
        except KeyError as error:
            raise NotPlainError(f"{self.name}: {where} refers to {id!r}, which there is not; correct it.") from error
        finally:
            self._open.pop()

    def _value(self, node: ast.expr, names: Mapping[str, str], where: str, deep: bool) -> Any:
        """What a parsed expression says, if it is of the few kinds that say something without being run."""

        def of(part: ast.expr) -> Any:
            return self._value(part, names, where, deep)

        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str | None):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return self._referred(names[node.id], where, deep)
        if isinstance(node, ast.List | ast.Tuple):
            return [of(part) for part in node.elts]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = of(node.operand)
            if isinstance(number, int | float):
                return -number
        if isinstance(node, ast.IfExp):
            chosen = of(node.test)
            if isinstance(chosen, bool):
                return of(node.body if chosen else node.orelse)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            left, right = of(node.left), of(node.right)
            if isinstance(left, list) and isinstance(right, list):
                self._left -= len(left) + len(right)
                if self._left >= 0:
                    return left + right
        raise ValueError("not plain")

    def _refused(self, text: str, where: str) -> NotPlainError:
        shown = text if len(text) <= 60 else f"{text[:57]}…"
        return NotPlainError(
            f"{self.name}: {where} is {shown!r}, which would have to be evaluated; nothing is evaluated here, so write "
            "its plain value instead."
        )
