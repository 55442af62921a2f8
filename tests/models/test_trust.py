"""Files that may run code are opened after the user agreed to these very bytes, once."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from datetime import datetime
from pathlib import Path

import pytest

from cease_core.errors import CeaseError
from cease_core.models.foreign.drafts import Question, refuse
from cease_core.models.foreign.trust import AGREED, FOLDER, agree, agreed, agreements, ask, file_hash

WHY = "It may run code."


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the list lies in; it does not exist yet."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A file that somebody sent."""
    path = tmp_path / "network.ts"
    path.write_bytes(b"a program")
    return path


class Asked:
    """A user who answers, and remembers the questions."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.questions: list[Question] = []

    def __call__(self, question: Question) -> bool:
        self.questions.append(question)
        return self.answer


def test_a_user_is_asked_once_for_a_file_wherever_it_lies(program: Path, tmp_path: Path) -> None:
    user = Asked(True)
    sha256 = ask(program, WHY, user)
    assert user.questions == [Question(program, sha256, WHY)]
    assert sha256 == hashlib.sha256(b"a program").hexdigest()
    program.rename(tmp_path / "renamed.ts")
    assert ask(tmp_path / "renamed.ts", WHY, user) == sha256
    assert len(user.questions) == 1


def test_a_changed_file_is_another_file(program: Path) -> None:
    user = Asked(True)
    ask(program, WHY, user)
    program.write_bytes(b"b program")
    ask(program, WHY, user)
    assert [q.sha256 for q in user.questions] == list(agreements())


def test_a_refusal_is_not_remembered(program: Path) -> None:
    user = Asked(False)
    for _ in range(2):
        with pytest.raises(CeaseError, match=r"network\.ts was not opened, since you did not agree"):
            ask(program, WHY, user)
    assert len(user.questions) == 2
    assert not agreed(user.questions[0].sha256)


def test_nobody_agrees_to_nothing(program: Path) -> None:
    with pytest.raises(CeaseError, match=r"network\.ts was not opened: It may run code\. Agree to it"):
        ask(program, WHY, refuse)


def test_the_list_says_what_and_when(program: Path, home: Path) -> None:
    sha256 = ask(program, WHY, Asked(True))
    (entry,) = json.loads((home / AGREED).read_text()).items()
    assert (entry[0], entry[1]["what"]) == (sha256, "network.ts")
    assert datetime.fromisoformat(entry[1]["when"]).utcoffset() is not None
    assert os.listdir(home) == [AGREED]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": 3}', b"[" * 100_000, b'{"%b": {"what": 1}}' % (b"0" * 64)]
)
def test_a_damaged_list_asks_again(damage: bytes, program: Path, home: Path) -> None:
    ask(program, WHY, Asked(True))
    (home / AGREED).write_bytes(damage)
    user = Asked(True)
    assert agreed(ask(program, WHY, user))
    assert len(user.questions) == 1


def test_a_list_that_is_a_folder_says_so(program: Path, home: Path) -> None:
    (home / AGREED).mkdir(parents=True)
    with pytest.raises(CeaseError, match="a folder of that name exists"):
        ask(program, WHY, Asked(True))
    assert not agreed(file_hash(program))


def test_a_library_cannot_bring_its_own_consent(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download, own = tmp_path / "download", tmp_path / "user"
    (download / "models").mkdir(parents=True)
    sha256 = file_hash(program)
    forged = json.dumps({sha256: {"what": "network.ts", "when": "2020-01-01T00:00:00+00:00"}})
    (download / AGREED).write_text(forged)
    (download / "models" / AGREED).write_text(forged)
    monkeypatch.delenv(FOLDER)
    monkeypatch.setattr(Path, "home", lambda: own)
    monkeypatch.setenv("CEASE_MODELS", str(download / "models"))
    assert not agreed(sha256)
    ask(program, WHY, Asked(True))
    assert agreed(sha256)
    assert [path.relative_to(own).as_posix() for path in own.rglob("*.json")] == [f".napari-cease/{AGREED}"]


@pytest.mark.parametrize("there", [False, True])
def test_nobody_else_can_write_the_list(there: bool, program: Path, home: Path) -> None:
    if there:
        home.mkdir()
        home.chmod(0o775)
    ask(program, WHY, Asked(True))
    assert stat.S_IMODE((home / AGREED).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == (0o755 if there else 0o700)


def test_only_hashes_are_agreed_to() -> None:
    with pytest.raises(ValueError, match="no SHA-256"):
        agree("network.ts", "network.ts")


def test_what_is_no_file_is_not_asked_about(tmp_path: Path) -> None:
    user = Asked(True)
    for path in (tmp_path, tmp_path / "missing.ts"):
        with pytest.raises(CeaseError, match="is not a file"):
            ask(path, WHY, user)
    assert not user.questions
