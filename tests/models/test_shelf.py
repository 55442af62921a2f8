"""The library's operations: what comes in works, nothing half done appears, and nothing is lost by mistake."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cease_core.errors import CeaseError
from cease_core.models import ARCHITECTURES, available_models, build, load_model, save_model, shelf
from cease_core.models.checkpoint import CARD, WEIGHTS, load_card
from cease_core.models.library import SHIPPED
from cease_core.models.shelf import (
    KEPT_DAYS,
    LIMITS,
    ROBUSTNESS,
    TRASH,
    NameTakenError,
    delete_model,
    export_model,
    headline,
    import_model,
    is_shipped,
    rename_model,
    restore,
)

AUDIT = {"clean_dice": 0.8, "worst_dice": 0.4, "epsilon": 8 / 255, "asr_drop": 0.25, "verdict": "holds"}


@pytest.fixture(autouse=True)
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's library; it does not exist yet."""
    monkeypatch.setenv("CEASE_MODELS", str(tmp_path / "library"))
    return tmp_path / "library"


@pytest.fixture
def source(make_model, tmp_path: Path) -> Path:
    """A model's folder outside the library."""
    return save_model(make_model(seed=1), tmp_path / "elsewhere" / "tiny")


@pytest.fixture
def zipped(source: Path, tmp_path: Path) -> Callable[..., Path]:
    """A zip of that folder, with other entries beside or instead."""

    def make(entries: dict[Any, bytes] | None = None, *, inside: str = "tiny/", only: bool = False) -> Path:
        path = tmp_path / "model.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in () if only else (CARD, WEIGHTS):
                archive.write(source / name, inside + name)
            for entry, data in (entries or {}).items():
                archive.writestr(entry, data)
        return path

    return make


def own(library: Path) -> list[str]:
    """Names of the user's models that can be found, and proof that nothing else lies about."""
    found = [folder.name for folder in available_models() if folder.parent == library]
    assert sorted(p.name for p in library.iterdir() if p.name != TRASH) == sorted(found)
    return found


def same_weights(a: Path, b: Path) -> bool:
    x, y = load_file(a / WEIGHTS), load_file(b / WEIGHTS)
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


# --- import ---


def test_a_folder_and_either_of_its_files_can_be_imported(source: Path, library: Path) -> None:
    assert import_model(source) == library / "tiny"
    import_model(source / WEIGHTS, name="second")
    import_model(source / CARD, name="third")
    assert own(library) == ["second", "third", "tiny"]
    assert all(same_weights(source, library / name) for name in own(library))


def test_nothing_but_the_models_files_comes_along(source: Path, library: Path) -> None:
    (source / "candidates").mkdir()
    (source / "state.pt").write_bytes(b"whatever")
    (source / ROBUSTNESS).write_text(json.dumps(AUDIT))
    assert sorted(p.name for p in import_model(source).iterdir()) == sorted([CARD, WEIGHTS, ROBUSTNESS])


@pytest.mark.parametrize("inside", ["", "tiny/", "a/b/"])
def test_a_zip_can_be_imported_wherever_the_model_lies_in_it(zipped, source: Path, inside: str) -> None:
    folder = import_model(zipped({"__MACOSX/._card.json": b"\0", "readme.txt": b"hello"}, inside=inside))
    assert same_weights(folder, source)
    assert sorted(p.name for p in folder.iterdir()) == [CARD, WEIGHTS]


def test_a_shipped_model_is_imported_under_another_name_and_told_apart(library: Path) -> None:
    with pytest.raises(NameTakenError, match="already a model called 'cardiac-defended'; choose another name") as said:
        import_model(SHIPPED / "cardiac-defended")
    assert said.value.free == "cardiac-defended-2"
    assert own(library) == []
    folder = import_model(SHIPPED / "cardiac-defended", name=said.value.free)
    card = load_card(folder)
    assert (card.name, card.title) == ("cardiac-defended-2", "Cardiac MR, defended by CEASE (cardiac-defended-2)")
    assert same_weights(folder, SHIPPED / "cardiac-defended")


def test_names_that_differ_in_capitals_alone_clash(source: Path) -> None:
    import_model(source)
    with pytest.raises(NameTakenError):
        import_model(source, name="TINY")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "naïve", "two words"])
def test_a_name_that_cannot_be_a_folders(source: Path, library: Path, name: str) -> None:
    with pytest.raises(CeaseError, match=r"cannot be a model's name; use letters, digits"):
        import_model(source, name=name)
    assert own(library) == []


def _card(folder: Path, **changes: object) -> None:
    (folder / CARD).write_text(json.dumps(json.loads((folder / CARD).read_text()) | changes))


def _weights(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = {k: change(v) if v.is_floating_point() else v for k, v in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)


def _linked(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(LIMITS[path.name] + 1)


TWO = [{"id": 1, "name": "a", "color": "#000000"}, {"id": 2, "name": "b", "color": "#111111"}]

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (shutil.rmtree, "does not exist; choose a model folder"),
    "no card": (lambda f: (f / CARD).unlink(), r"holds no card\.json; a model is a folder"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"holds no model\.safetensors; a model is a folder"),
    "weights a folder": (lambda f: [(f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()], "is not a file"),
    "weights a pipe": (lambda f: [(f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)], "is not a file"),
    "a link": (lambda f: _linked(f / WEIGHTS), "is a link to another file; choose the folder that holds"),
    "truncated": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), "damaged|holds less than"),
    "a pickle": (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps([0.0] * 9999)), "damaged"),
    "too large": (lambda f: _sparse(f / CARD), r"card\.json is .* GiB large, more than .* allowed"),
    "card no JSON": (lambda f: (f / CARD).write_text("{"), "not valid JSON"),
    "card too deep": (lambda f: (f / CARD).write_text("[" * 200_000), "not valid JSON"),
    "card of two classes": (lambda f: _card(f, classes=TWO), "a binary model has exactly one"),
    "classes that do not fit": (lambda f: _card(f, classes=TWO, mode="multiclass"), "belong to different models"),
    "ids out of order": (lambda f: _card(f, classes=[TWO[1]]), "ids must be 1, 2, … in order"),
    "a card that asks for terabytes": (
        lambda f: _card(f, architecture_args={"channels": [2**16, 2**18]}),
        "holds less than the card's unet needs",
    ),
    "a card that asks for huge images": (lambda f: _card(f, downsample=10**6), "more than can be tried"),
    "not a number": (lambda f: _weights(f, lambda t: t * torch.nan), "values that are no numbers"),
    "all zero": (lambda f: _weights(f, torch.zeros_like), "answers every image alike"),
    "an audit's result that is none": (lambda f: (f / ROBUSTNESS).write_text('{"clean_dice": 2}'), "audit"),
}


@pytest.mark.parametrize(("damage", "sentence"), BAD.values(), ids=BAD)
def test_what_is_no_working_model_leaves_no_trace(source: Path, library: Path, damage: Any, sentence: str) -> None:
    damage(source)
    with pytest.raises(CeaseError, match=sentence) as said:
        import_model(source)
    assert "\n" not in str(said.value)
    assert ".import-" not in str(said.value)
    assert own(library) == []


def _link() -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo("tiny/robustness.json")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


BAD_ZIPS: dict[str, tuple[dict[Any, bytes], str]] = {
    "escapes": ({"../escaped.txt": b"x"}, "is not safe to open: its entry '../escaped.txt' points outside"),
    "escapes further down": ({"tiny/../../escaped.txt": b"x"}, "points outside"),
    "absolute": ({"/tmp/escaped.txt": b"x"}, "points outside"),
    "a drive": ({"C:\\escaped.txt": b"x"}, "points outside"),
    "backwards": ({"..\\escaped.txt": b"x"}, "points outside"),
    "a link": ({_link(): b"/etc/passwd"}, "is a link; make a zip of the files themselves"),
    "two models": ({"other/card.json": b"{}"}, "holds several models"),
    "two places": ({"other/robustness.json": b"{}"}, "lie in different folders"),
}


@pytest.mark.parametrize(("entries", "sentence"), BAD_ZIPS.values(), ids=BAD_ZIPS)
def test_archives_that_no_honest_program_writes(
    zipped, tmp_path: Path, library: Path, entries: dict[Any, bytes], sentence: str
) -> None:
    with pytest.raises(CeaseError, match=sentence):
        import_model(zipped(entries))
    assert own(library) == []
    assert not list(tmp_path.rglob("escaped.txt"))


def test_an_archive_of_something_else(zipped) -> None:
    with pytest.raises(CeaseError, match=r"model\.zip holds no card\.json"):
        import_model(zipped({"readme.txt": b"hello"}, only=True))


def test_a_bomb_is_refused_by_what_it_claims(zipped, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, WEIGHTS, 1000)
    with pytest.raises(CeaseError, match=r"model\.safetensors is .* GiB large, more than"):
        import_model(zipped())


@pytest.mark.parametrize("where", ["middle", "end"])
def test_a_damaged_archive(zipped, library: Path, where: str) -> None:
    path = zipped()
    data = bytearray(path.read_bytes())
    if where == "middle":
        data[len(data) // 2] ^= 255
    else:
        del data[-10:]
    path.write_bytes(data)
    with pytest.raises(CeaseError, match=r"model\.zip (could not be read as a zip archive|could not be .*|is not a)"):
        import_model(path)
    assert own(library) == []


def test_a_pickle_is_not_opened(tmp_path: Path, library: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / "model.pt").write_bytes(pickle.dumps(Evil()))
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    (tmp_path / "other.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CeaseError, match="pickles above all, are not opened"):
        import_model(tmp_path / "model.pt")
    with pytest.raises(CeaseError, match=r"other\.pt holds no card\.json"):  # torch's own files are zips
        import_model(tmp_path / "other.pt")
    assert not (tmp_path / "owned").exists()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions count, for root too: root steps down for as long as it lasts."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def reachable(tmp_path: Path) -> None:
    """Nobody may go through the folders that pytest makes for the user alone."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)


@pytest.mark.usefixtures("reachable")
def test_a_library_that_may_not_be_written_to(source: Path, library: Path) -> None:
    folder = import_model(source)
    library.chmod(0o555)
    folder.chmod(0o555)
    try:
        with as_nobody():
            with pytest.raises(CeaseError, match=r"tiny was not imported: writing there is not permitted; choose"):
                import_model(source, name="second")
            with pytest.raises(CeaseError, match=r"Tiny was not deleted: writing there is not permitted"):
                delete_model(folder)
            with pytest.raises(CeaseError, match=r"was not written: writing there is not permitted"):
                rename_model(folder, "Large")
    finally:
        library.chmod(0o755)
        folder.chmod(0o755)
    assert own(library) == ["tiny"]
    assert load_card(folder).title == "Tiny"


def test_a_full_disk(source: Path, library: Path, tmp_path: Path) -> None:
    import_model(source)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(CeaseError, match=r"tiny was not imported: the file would be larger than is allowed"):
            import_model(source, name="second")
        with pytest.raises(CeaseError, match=r"tiny\.zip was not written: "):
            export_model(library / "tiny", tmp_path / "tiny.zip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert own(library) == ["tiny"]
    assert not (tmp_path / "tiny.zip").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_size_of_every_architecture_is_known_before_it_is_built(make_card, architecture: str) -> None:
    card = make_card(architecture=architecture, architecture_args={})
    built = build(architecture, card.ndim, card.channels, card.outputs, {})
    assert shelf._tensor_values(card) == sum(t.numel() for t in built.state_dict().values())


# --- export ---


def test_what_is_exported_comes_back_the_same(tmp_path: Path, library: Path) -> None:
    folder = import_model(SHIPPED / "hippocampus-defended", name="mine")
    (folder / ROBUSTNESS).write_text(json.dumps(AUDIT))
    path = export_model(folder, tmp_path / "out")
    assert path == tmp_path / "out.zip"
    again = import_model(path, name="again")
    assert same_weights(again, SHIPPED / "hippocampus-defended")
    assert headline(again, load_card(again)) == headline(folder, load_card(folder))
    assert load_card(again).training == load_card(folder).training
    assert export_model(folder, tmp_path / "twice.zip").read_bytes() == path.read_bytes()


def test_half_a_model_is_not_exported(source: Path, tmp_path: Path) -> None:
    (source / WEIGHTS).unlink()
    with pytest.raises(CeaseError, match="nothing to export"):
        export_model(source, tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


# --- rename and delete ---


def test_a_title_changes_and_all_else_stays(source: Path) -> None:
    folder = import_model(source)
    before = load_card(folder)
    rename_model(folder, "  Discs,  ε ≤ 8/255 ")
    assert load_card(folder) == before.model_copy(update={"title": "Discs, ε ≤ 8/255"})
    assert same_weights(folder, source)


def test_titles_are_not_empty_and_not_given_twice(source: Path) -> None:
    folder = import_model(source)
    other = import_model(source, name="other")
    with pytest.raises(CeaseError, match="a model needs a title"):
        rename_model(folder, "  ")
    with pytest.raises(NameTakenError, match="already a model called 'tiny \\(OTHER\\)'; choose another name"):
        rename_model(folder, "tiny (OTHER)")
    rename_model(folder, "TINY")  # its own, in capitals
    assert load_card(other).title == "Tiny (other)"


def test_a_deleted_model_comes_back_as_it_was(source: Path, library: Path) -> None:
    folder = import_model(source)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    deleted = delete_model(folder)
    assert own(library) == []
    assert deleted.title == "Tiny"
    assert restore(deleted) == folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert load_model(folder).card.name == "tiny"


def test_deleting_twice_and_restoring_both(source: Path, library: Path) -> None:
    first = delete_model(import_model(source))
    second = delete_model(import_model(source))
    restore(second)
    with pytest.raises(NameTakenError, match="already a model called 'tiny'"):
        restore(first)
    rest = delete_model(library / "tiny")
    restore(first)
    assert own(library) == ["tiny"]
    shutil.rmtree(rest.kept)
    with pytest.raises(CeaseError, match=r"no longer in the trash .*; import or train it again"):
        restore(rest)


def test_the_trash_is_emptied_of_what_is_old(source: Path, library: Path) -> None:
    old = delete_model(import_model(source)).kept
    when = int(old.suffix[1:]) - (KEPT_DAYS + 1) * 86400 * 10**9
    old = old.rename(old.with_name(f"tiny.{when}"))
    kept = delete_model(import_model(source)).kept
    assert not old.exists()
    assert kept.is_dir()


def test_a_damaged_model_can_be_deleted(source: Path, library: Path) -> None:
    folder = import_model(source)
    (folder / CARD).write_text("{")
    assert delete_model(folder).title == "tiny"
    assert own(library) == []


def test_shipped_models_are_read_only() -> None:
    folder = SHIPPED / "polyp-defended"
    assert is_shipped(folder)
    for change in (delete_model, lambda f: rename_model(f, "Mine")):
        with pytest.raises(CeaseError, match=r"polyp-defended came with the program and cannot be (deleted|renamed)"):
            change(folder)
    assert folder.is_dir()


def test_folders_outside_the_library_are_let_alone(source: Path) -> None:
    import_model(source)
    with pytest.raises(CeaseError, match="is no model of your library"):
        delete_model(source)
    assert source.is_dir()


# --- the headline ---


def test_without_an_audit_the_validation_counts(source: Path) -> None:
    by_name = {model.card.name: model for model in shelf.shelf()}
    defended, undefended = by_name["polyp-defended"], by_name["polyp-undefended"]
    card = defended.card
    assert defended.shipped
    assert defended.headline.worst_dice == card.metrics["validation_robust_dice"]
    assert defended.headline.epsilon == card.training["defence"]["inner"]["epsilon"]
    assert not defended.headline.audited
    assert undefended.headline.clean_dice == undefended.card.metrics["validation_clean_dice"]
    assert undefended.headline.worst_dice is None


def test_an_audit_counts_more(source: Path) -> None:
    (source / ROBUSTNESS).write_text(json.dumps(AUDIT | {"cases": 12}))
    found = headline(import_model(source), load_card(source))
    assert (found.clean_dice, found.worst_dice, found.epsilon) == (0.8, 0.4, 8 / 255)
    assert (found.asr_drop, found.verdict, found.audited) == (0.25, "holds", True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"clean_dice": NaN, "worst_dice": 0, "epsilon": 1}', "\xff"])
def test_a_damaged_result_does_not_hide_the_model(source: Path, text: str) -> None:
    (source / ROBUSTNESS).write_text(text)
    assert not headline(source, load_card(source)).audited
