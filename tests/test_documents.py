"""Documents say what is true: examples of docs/bring-your-own.md run as they stand, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cease_core.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "bring-your-own.md"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?) *$", re.MULTILINE)
LINK = re.compile(r"\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page before it."""

    language: str
    text: str
    line: int


@dataclass(frozen=True)
class Section:
    """What stands below one heading, up to the next."""

    title: str
    blocks: tuple[Block, ...]


def sections(page: Path) -> list[Section]:
    """Sections of a page that hold blocks."""
    text = page.read_text(encoding="utf-8")
    fences = list(FENCE.finditer(text))
    inside = [range(*fence.span()) for fence in fences]
    headings = [h for h in HEADING.finditer(text) if not any(h.start() in span for span in inside)]
    found = []
    for i, heading in enumerate(headings):
        end = headings[i + 1].start() if headings[i + 1 :] else len(text)
        blocks = tuple(
            Block(fence[1], fence[2], text.count("\n", 0, fence.start(2)))
            for fence in fences
            if heading.end() < fence.start() < end
        )
        if blocks:
            found.append(Section(heading[1], blocks))
    return found


def claimed(text: str) -> re.Pattern[str]:
    """What matches an output as it is shown: … stands for anything, and any space for any other."""
    parts = [r"\s+".join(map(re.escape, part.split())) for part in text.split("…")]
    return re.compile(r"[\s\S]*?".join(parts))


class Reader:
    """Somebody who follows a section: one Python session and one terminal in the same folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed = ""

    def follow(self, block: Block) -> None:
        if block.language == "python":
            # In a file, since TorchScript reads a network's source again.
            script = Path(f"line_{block.line}.py")
            script.write_text("\n" * block.line + block.text, encoding="utf-8")
            exec(compile(script.read_text(encoding="utf-8"), str(script.absolute()), "exec"), self.names)
            self.printed = self.capsys.readouterr().out
        elif block.language == "text":
            assert claimed(block.text).search(self.printed)
        elif block.language == "sh":
            for command in commands(block.text):
                code, _, err = self.run(command)
                assert code == 0, err
        elif block.language == "console":
            first, _, shown = block.text.partition("\n")
            code, out, err = self.run(shlex.split(first.removeprefix("$ ")))
            assert claimed(shown).search(out + err), out + err
            assert code == 0 or claimed(shown).fullmatch(err.strip())
        else:
            pytest.fail(f"line {block.line}: nothing is known to do with {block.language!r}")

    def run(self, command: list[str]) -> tuple[int, str, str]:
        """Exit code and both outputs of a `cease` command."""
        assert command[0] == "cease"
        with pytest.raises(SystemExit) as stop:
            main(command[1:])
        said = self.capsys.readouterr()
        return int(stop.value.code or 0), said.out, said.err


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


@pytest.mark.parametrize("section", sections(PAGE), ids=lambda section: section.title)
def test_what_the_page_shows_works(
    section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "home" / "models"))
    monkeypatch.setenv("CEASE_CONSENT", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    reader = Reader(capsys)
    for block in section.blocks:
        reader.follow(block)


def anchors(document: Path) -> set[str]:
    """What can stand after # in a link to a document, as GitHub makes it of the headings."""
    found: list[str] = []
    for heading in HEADING.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        before = found.count(slug)
        found += [slug, f"{slug}-{before}"] if before else [slug]
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", document.read_text(encoding="utf-8")))
    local = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    for link in local:
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
