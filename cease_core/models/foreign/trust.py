"""What a user agreed to open on this machine: files that may run code, each by the hash of its bytes.

A file that was agreed to once is opened without asking; one that changed by a single bit is another file. The list
lies in the user's own folder wherever the library is: what comes with a library cannot bring its own consent.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from cease_core.errors import CeaseError
from cease_core.io.files import reading, write_reason, write_text
from cease_core.models.foreign.drafts import Consent, Question
from cease_core.models.foreign.pickles import LIMIT

AGREED = "agreed.json"
FOLDER = "CEASE_CONSENT"
"""Environment variable that names another folder for the list."""

_MOST = 2**20
_HASH = re.compile(r"[0-9a-f]{64}")


class Agreement(BaseModel):
    """What was agreed to, and when (ISO 8601, UTC)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    what: str
    when: str


_ALL = TypeAdapter(dict[str, Agreement])


def agreed(sha256: str) -> bool:
    """Whether the user agreed to a file on this machine."""
    return sha256 in agreements()


def agreements() -> dict[str, Agreement]:
    """All that was agreed to, by hash; nothing if the list is missing or damaged, so that the user is asked again."""
    path = _list()
    try:
        if path.stat().st_size > _MOST:
            return {}
        return _ALL.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, ValidationError):
        return {}


def agree(sha256: str, what: str) -> None:
    """Remember that the user agreed to a file.

    Parameters
    ----------
    sha256
        Of its bytes, 64 hexadecimal digits.
    what
        Its name, for who reads the list.

    Raises
    ------
    CeaseError
        If the list cannot be written.
    """
    if not _HASH.fullmatch(sha256):
        raise ValueError(f"{sha256!r} is no SHA-256")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    path, known = _list(), agreements() | {sha256: Agreement(what=what[:200], when=now)}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CeaseError(f"{path} was not written: {write_reason(error)}.") from error
    write_text(path, json.dumps({key: value.model_dump() for key, value in known.items()}, indent=1) + "\n")
    with suppress(OSError):  # not every file system knows whose a file is
        path.chmod(0o600)
        path.parent.chmod(path.parent.stat().st_mode & ~0o022)


def ask(path: Path, why: str, consent: Consent) -> str:
    """Let the user decide about a file, once.

    Parameters
    ----------
    path
        The file.
    why
        One sentence that says what opening it may do.
    consent
        Asked only if the user did not agree to these bytes before.

    Returns
    -------
    str
        SHA-256 of the file that was agreed to.

    Raises
    ------
    CeaseError
        If the user does not agree, or the file cannot be read.
    """
    sha256 = file_hash(path)
    if not agreed(sha256):
        if not consent(Question(path, sha256, why)):
            raise CeaseError(f"{path.name} was not opened, since you did not agree to it; import it again to be asked.")
        agree(sha256, path.name)
    return sha256


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises
    ------
    CeaseError
        If it cannot be read or is too large.
    """
    with reading(path, "a model's file"):
        if not path.is_file():
            raise CeaseError(f"{path} is not a file; choose the file that holds the model.")
        size = path.stat().st_size
        if size > LIMIT:
            raise CeaseError(
                f"{path.name} is {size / 2**30:.2g} GiB large, more than the {LIMIT / 2**30:.2g} GiB allowed; "
                "choose another model."
            )
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _list() -> Path:
    return Path(os.environ.get(FOLDER) or Path.home() / ".napari-cease") / AGREED
