"""What can be done with the models of the library: list, import, export, rename, delete and take back.

The user's library is a folder of model folders. Whatever is under way lies in a hidden folder beside them and takes
its place by one rename, so that half a model never appears; what was deleted lies in `TRASH` for a while.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticSerializationError
from torch.overrides import TorchFunctionMode

from cease_core.errors import CeaseError, first_fault, one_line
from cease_core.io.files import reading, write_atomically, write_reason, write_text
from cease_core.models.architectures import build
from cease_core.models.card import ModelCard
from cease_core.models.checkpoint import CARD, WEIGHTS, load_card, load_model, open_model, weights_file
from cease_core.models.foreign.drafts import Consent, refuse
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.foreign.programs import WHY
from cease_core.models.foreign.spec import PROGRAMS
from cease_core.models.foreign.trial import try_model
from cease_core.models.foreign.trust import ask
from cease_core.models.library import SHIPPED, available_models, user_library

ROBUSTNESS = "robustness.json"
TRASH = ".trash"
KEPT_DAYS = 30
"""How long what was deleted can be taken back."""

LIMITS = {CARD: 16 * 2**20, ROBUSTNESS: 2**20, **dict.fromkeys((WEIGHTS, *PROGRAMS.values()), 4 * 2**30)}
"""Bytes that an imported file may have."""

TRIAL_VALUES = 2**26
"""Values of the random image that an imported model is tried on: 256 MiB."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_CHUNK = 2**20


class NameTakenError(CeaseError):
    """There is such a model already.

    Parameters
    ----------
    name
        Of the model that was to be added.
    free
        A name like it that nobody has.
    """

    def __init__(self, name: str, free: str) -> None:
        super().__init__(f"there is already a model called {name!r}; choose another name, such as {free!r}.")
        self.name, self.free = name, free


# --- what is known of a model's robustness ------------------------------------------------------------------------


class Robustness(BaseModel):
    """What an audit leaves in a model's folder, as ``robustness.json``.

    Parameters
    ----------
    clean_dice, worst_dice
        Mean Dice over cases, clean and in the worst case of all attacks up to ``epsilon``.
    epsilon
        Strength of the attacks, a fraction of the intensity window.
    asr_drop
        Share of the eligible cases that an attack broke.
    verdict
        A word or two.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    clean_dice: float = Field(ge=0, le=1)
    worst_dice: float = Field(ge=0, le=1)
    epsilon: float = Field(gt=0, le=1)
    asr_drop: float | None = Field(default=None, ge=0, le=1)
    verdict: str = Field(default="", max_length=80)


@dataclass(frozen=True)
class Headline:
    """What is known of a model's robustness; None where nothing is.

    Parameters
    ----------
    clean_dice, worst_dice
        Mean Dice, clean and under attack.
    epsilon
        Strength of that attack, a fraction of the intensity window.
    asr_drop
        Share of the eligible cases that an audit broke.
    verdict
        An audit's; empty without one.
    audited
        Whether an audit measured it, or the training's own validation.
    """

    clean_dice: float | None
    worst_dice: float | None
    epsilon: float | None
    asr_drop: float | None = None
    verdict: str = ""
    audited: bool = False


@dataclass(frozen=True)
class ShelvedModel:
    """A model of the library.

    Parameters
    ----------
    folder, card, headline
        Where it lies, and what is known of it.
    shipped
        Whether it came with the program, and so cannot be changed.
    """

    folder: Path
    card: ModelCard
    headline: Headline
    shipped: bool


def is_shipped(folder: Path) -> bool:
    """Whether a model came with the program."""
    return folder.resolve().parent == SHIPPED.resolve()


def shelf() -> list[ShelvedModel]:
    """All models with a readable card, shipped ones first, each group in order of name."""
    models = available_models().items()
    return [ShelvedModel(folder, card, headline(folder, card), is_shipped(folder)) for folder, card in models]


def load_robustness(folder: Path) -> Robustness | None:
    """What an audit found about a model; None if there was none.

    Raises
    ------
    CeaseError
        If the file is damaged.
    """
    path = folder / ROBUSTNESS
    if not path.is_file():
        return None
    try:
        with reading(path, "the result of an audit"):
            return Robustness.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except CeaseError as error:
        if isinstance(error.__cause__, ValidationError):
            fault = first_fault(error.__cause__, "file")
            raise CeaseError(f"{path} does not hold an audit's result ({fault}); audit the model again.") from error
        raise


def headline(folder: Path, card: ModelCard) -> Headline:
    """An audit's figures if there are readable ones, else those of the training's validation."""
    with suppress(CeaseError):
        found = load_robustness(folder)
        if found is not None:
            return Headline(**found.model_dump(), audited=True)
    clean, robust = (card.metrics.get(f"validation_{kind}_dice") for kind in ("clean", "robust"))
    epsilon = entry(card.training, "defence", "inner", "epsilon")
    known = robust is not None and isinstance(epsilon, float)
    return Headline(clean, robust if known else None, epsilon if known else None)


def entry(tree: Any, *path: str) -> Any:
    """What stands at ``path`` in nested mappings; None if nothing does, as in cards that others wrote."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


# --- import -------------------------------------------------------------------------------------------------------


def import_model(source: Path, *, name: str | None = None, consent: Consent = refuse) -> Path:
    """Copy a model of this program into the user's library, once it has shown that it works.

    Parameters
    ----------
    source
        A folder with ``card.json`` and the weights, one of these files, or a zip of the folder.
    name
        Another name than the card's.
    consent
        Asks the user before a program is opened; by default nobody agrees.

    Returns
    -------
    Path
        The model's folder in the library.

    Raises
    ------
    NameTakenError
        If there is a model of that name.
    CeaseError
        If it is no model, is damaged or too large, or cannot be written; the library is then as it was.
    """
    source = import_source(source)

    def fill(stage: Path) -> ModelCard:
        (_unpack if source.is_file() else _copy_folder)(source, stage)
        with _said_of(stage, source):
            card = _named(_read_card(stage), name)
            load_robustness(stage)
            if card.foreign is not None and card.foreign.kind in PROGRAMS and weights_file(stage, card).is_file():
                ask(weights_file(stage, card), WHY[card.foreign.kind], consent)
            try_stored(stage, card)
        write_card(stage, card)
        return card

    return take_in(source, fill)


def take_in(source: Path, fill: Callable[[Path], ModelCard]) -> Path:
    """Put a model into the user's library in one piece.

    Parameters
    ----------
    source
        What the user chose, for the sentence if that fails.
    fill
        Writes the model into the empty folder that it is given, makes sure that it works, and returns its card.

    Raises
    ------
    NameTakenError
        If there is a model of that name.
    CeaseError
        What ``fill`` raises, or that it cannot be written; the library is then as it was.
    """
    library = user_library()
    with _writing(f"{source.name} was not imported"):
        library.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library, prefix=".import-", ignore_cleanup_errors=True) as scratch:
            stage = Path(scratch) / "model"
            stage.mkdir()
            card = fill(stage)
            return _shelve(stage, library / card.name)


def import_source(path: Path) -> Path:
    """What is imported when ``path`` is chosen: the folder of a file that belongs to a model, else ``path``."""
    return path.parent if path.name in LIMITS and not path.is_dir() else path


def _copy_folder(source: Path, stage: Path) -> None:
    if not source.is_dir():
        raise CeaseError(f"{source} does not exist; choose a model folder or a zip of one.")
    with reading(source, "a folder"):
        present = [name for name in LIMITS if os.path.lexists(source / name)]
    _check_complete(source, present)
    for name in present:
        path = source / name
        if path.is_symlink():
            raise CeaseError(f"{path} is a link to another file; choose the folder that holds the file itself.")
        if not path.is_file():
            raise CeaseError(f"{path} is not a file; choose a folder with {WEIGHTS} and {CARD}.")
        _check_size(source, name, path.stat().st_size)
        with reading(path, "a file"):
            stream = path.open("rb")
        with stream:
            _copy(stream, path, stage / name)


def _unpack(source: Path, stage: Path) -> None:
    if not zipfile.is_zipfile(source):
        with reading(source, "a file"), source.open("rb"):  # one that may not be read is not called something else
            pass
        raise CeaseError(
            f"{source.name} is not a model: choose a folder with {WEIGHTS} and {CARD}, or a zip of one; "
            "other formats, pickles above all, are not opened."
        )
    with reading(source, "a zip archive"):
        archive = zipfile.ZipFile(source)
    with archive:
        members = archive.infolist()
        for member in members:
            _check_member(source, member)
        found = {name: [m for m in members if PurePosixPath(m.filename).name == name] for name in LIMITS}
        _check_complete(source, [name for name, places in found.items() if places])
        if any(len(places) > 1 for places in found.values()):
            raise CeaseError(f"{source.name} holds several models; make a zip of each and import them one by one.")
        chosen = {name: places[0] for name, places in found.items() if places}
        if len({PurePosixPath(m.filename).parent for m in chosen.values()}) > 1:
            raise CeaseError(f"{source.name}: {WEIGHTS} and {CARD} lie in different folders; put them into one.")
        for name, member in chosen.items():
            _check_size(source, name, member.file_size)
            with reading(source, "a zip archive"):
                stream = archive.open(member)
            with stream:
                _copy(stream, source, stage / name)


def _check_member(source: Path, member: zipfile.ZipInfo) -> None:
    """Refuse an archive that no honest program writes."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename:
        raise CeaseError(
            f"{source.name} is not safe to open: its entry {member.filename!r} points outside; "
            "ask for another archive from somebody you trust."
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise CeaseError(f"{source.name}: the entry {member.filename!r} is a link; make a zip of the files themselves.")
    if member.flag_bits & 1 or member.compress_type not in _METHODS:
        raise CeaseError(f"{source.name} is encrypted or compressed in an unusual way; make a plain zip of the model.")


def _check_complete(source: Path, present: list[str]) -> None:
    for names in ((CARD,), (WEIGHTS, *PROGRAMS.values())):
        if not any(name in present for name in names):
            raise CeaseError(
                f"{source.name} holds no {names[0]}; a model is a folder, or a zip of one, with {WEIGHTS} and {CARD}."
            )


def _check_size(source: Path, name: str, size: int) -> None:
    if size > LIMITS[name]:
        raise CeaseError(
            f"{source.name}: {name} is {size / 2**30:.2g} GiB large, more than the {LIMITS[name] / 2**30:.2g} GiB "
            "allowed; choose another model."
        )


def _copy(stream: IO[bytes], source: Path, target: Path) -> None:
    left = LIMITS[target.name]
    with target.open("xb") as out:
        while chunk := _read(stream, source):
            left -= len(chunk)
            if left < 0:  # larger than its header said, or still growing
                raise CeaseError(f"{source.name}: {target.name} is larger than it says; copy the model again.")
            out.write(chunk)


def _read(stream: IO[bytes], source: Path) -> bytes:
    with reading(source, "a model's file"):
        return stream.read(_CHUNK)


def _read_card(stage: Path) -> ModelCard:
    with reading(stage / CARD, "a model card"):
        return load_card(stage)


def try_stored(stage: Path, card: ModelCard) -> None:
    """Run a stored model and its gradient once, after making sure that it is no larger than its file.

    Raises
    ------
    CeaseError
        If it does not work, or is a program that the user has not agreed to run.
    """
    weights = weights_file(stage, card)
    if not weights.is_file():
        raise CeaseError(f"{stage} holds no {weights.name}; copy the whole model folder, not the card alone.")
    if card.foreign is not None:
        model = open_model(stage)
        assert isinstance(model, ForeignModel)
        try_model(model)
        return
    if _tensor_values(card) > (stage / WEIGHTS).stat().st_size:
        raise CeaseError(
            f"{stage / WEIGHTS} holds less than the card's {card.architecture} needs; the file is cut short, "
            "or card and weights belong to different models."
        )
    with reading(stage / WEIGHTS, "a model's weights"):
        model = load_model(stage).requires_grad_(False)
        edge = model.minimum
    if card.channels * (2 * edge) ** card.ndim > TRIAL_VALUES:
        raise CeaseError(
            f"{stage / CARD} asks for images of at least {edge} voxels along each axis, more than can be tried; "
            "correct downsample."
        )
    draws = torch.Generator().manual_seed(0)
    images = torch.rand((1, card.channels, *(edge,) * card.ndim), generator=draws).requires_grad_()
    with reading(stage / WEIGHTS, "a model that runs"):
        logits = model(images)
        (gradient,) = torch.autograd.grad(logits.square().sum(), images)
    if not (logits.isfinite().all() and gradient.isfinite().all()):
        raise CeaseError(f"{stage / WEIGHTS} answers with values that are no numbers; export the model again.")
    if not gradient.any():
        raise CeaseError(f"{stage / WEIGHTS} answers every image alike, so it segments nothing; export it again.")


class _NumbersStay(TorchFunctionMode):
    """Some constructors read numbers back from a range that they make: it needs values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _tensor_values(card: ModelCard) -> int:
    """Values in all tensors of a model, counted without making any."""
    with torch.device("meta"), _NumbersStay():
        backbone = build(card.architecture, card.ndim, card.channels, card.outputs, card.architecture_args)
    return sum(tensor.numel() for tensor in backbone.state_dict().values())


@contextmanager
def _said_of(stage: Path, source: Path) -> Iterator[None]:
    """Name what the user chose, not the copy that is looked at."""
    try:
        yield
    except CeaseError as error:
        sentence = str(error).replace(str(stage), str(source))
        raise CeaseError(sentence) from error


# --- names --------------------------------------------------------------------------------------------------------


def _named(card: ModelCard, name: str | None) -> ModelCard:
    """The card with another name, and with a title that tells it from its namesake."""
    if name is None or name == card.name:
        return card
    title = f"{card.title} ({name})" if card.title in _titles() else card.title
    return _changed(card, name=name, title=title)


def _changed(card: ModelCard, **changes: Any) -> ModelCard:
    try:
        return ModelCard.model_validate(card.model_dump() | changes)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("name",):
            raise CeaseError(
                f"{changes['name']!r} cannot be a model's name; use letters, digits, dots, dashes and underscores, "
                "beginning with a letter or a digit."
            ) from error
        raise CeaseError(f"the card cannot be changed so ({first_fault(error, 'card')}); choose another value.") from (
            error
        )


def _titles() -> list[str]:
    return [card.title for card in available_models().values()]


def _taken() -> set[str]:
    """Names in use, in small letters: many file systems do not tell them from capitals."""
    library = user_library()
    folders = [p.name for p in library.iterdir()] if library.is_dir() else []
    return {name.casefold() for name in (*folders, *(card.name for card in available_models().values()))}


def _free(name: str, taken: set[str]) -> str:
    return next(n for i in range(2, len(taken) + 3) if (n := f"{name}-{i}").casefold() not in taken)


def write_card(folder: Path, card: ModelCard) -> None:
    """Write a model's card; `CeaseError` if that fails."""
    try:
        text = card.model_dump_json(indent=1)
    except PydanticSerializationError as error:  # such as hundreds of lists within each other
        raise CeaseError(f"{card.name}: its card cannot be written ({one_line(error)}); correct it.") from error
    write_text(folder / CARD, text + "\n")


def _shelve(stage: Path, place: Path) -> Path:
    taken = _taken()
    if place.name.casefold() in taken:
        raise NameTakenError(place.name, _free(place.name, taken))
    os.rename(stage, place)
    return place


# --- export, rename, delete ---------------------------------------------------------------------------------------


def export_model(folder: Path, target: Path) -> Path:
    """Write a model as a zip that `import_model` takes; equal models give equal bytes.

    Parameters
    ----------
    target
        The file to write; ``.zip`` is added where it is missing.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    CeaseError
        If the model is incomplete, or the file cannot be written.
    """
    card = load_card(folder)
    weights = weights_file(folder, card).name
    if not (folder / weights).is_file():
        raise CeaseError(f"{folder} holds no {weights}, so there is nothing to export; import or train it again.")
    target = target if target.suffix.lower() == ".zip" else target.with_name(f"{target.name}.zip")

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w") as archive:
            for name in (CARD, weights, ROBUSTNESS):
                path = folder / name
                if not path.is_file():
                    continue
                member = zipfile.ZipInfo(f"{card.name}/{name}", _EPOCH)
                member.external_attr = (stat.S_IFREG | 0o644) << 16
                # Weights hardly shrink, and take long to.
                member.compress_type = zipfile.ZIP_STORED if name == weights else zipfile.ZIP_DEFLATED
                member.file_size = path.stat().st_size  # known beforehand, so that large files get large headers
                with path.open("rb") as source, archive.open(member, "w") as out:
                    shutil.copyfileobj(source, out, _CHUNK)

    write_atomically(target, ".zip", write)
    return target


def rename_model(folder: Path, title: str) -> None:
    """Give one of the user's models another title; its name, and so its folder, stay for whatever refers to them.

    Raises
    ------
    NameTakenError
        If another model has that title.
    CeaseError
        If the model came with the program, the title is empty, or the card cannot be written.
    """
    _check_own(folder, "renamed")
    title = " ".join(title.split())
    card = load_card(folder)
    if not title:
        raise CeaseError(f"a model needs a title, and {card.title} cannot go without one; type some letters.")
    if title == card.title:
        return
    others = {known.title.casefold() for other, known in available_models().items() if other != folder}
    if title.casefold() in others:
        raise NameTakenError(title, next(t for i in range(2, len(others) + 3) if (t := f"{title} {i}") not in others))
    with _writing(f"{card.title} was not renamed"):
        write_card(folder, _changed(card, title=title))


@dataclass(frozen=True)
class Deleted:
    """A model that was deleted, for `restore`.

    Parameters
    ----------
    title
        The model's.
    origin
        Where it lay.
    kept
        Where it lies now.
    """

    title: str
    origin: Path
    kept: Path


def delete_model(folder: Path) -> Deleted:
    """Move one of the user's models to the trash, and let go for good of what lay there for `KEPT_DAYS`.

    Raises
    ------
    CeaseError
        If the model came with the program, does not lie in the library, or cannot be moved.
    """
    _check_own(folder, "deleted")
    try:
        title = load_card(folder).title
    except CeaseError:  # a model that cannot be read can be thrown away all the same
        title = folder.name
    trash = folder.parent / TRASH
    now = time.time_ns()
    with _writing(f"{title} was not deleted"):
        trash.mkdir(exist_ok=True)
        _forget(trash, before=now - KEPT_DAYS * 86400 * 10**9)
        kept = trash / f"{folder.name}.{now}"
        os.rename(folder, kept)
    return Deleted(title, folder, kept)


def restore(deleted: Deleted) -> Path:
    """Take a deletion back.

    Returns
    -------
    Path
        The model's folder, as it was.

    Raises
    ------
    NameTakenError
        If a model of that name has come meanwhile.
    CeaseError
        If it is no longer in the trash, or cannot be moved.
    """
    if not deleted.kept.is_dir():
        raise CeaseError(f"{deleted.title} is no longer in the trash ({deleted.kept}); import or train it again.")
    with _writing(f"{deleted.title} was not restored"):
        return _shelve(deleted.kept, deleted.origin)


def _check_own(folder: Path, done: str) -> None:
    if is_shipped(folder):
        raise CeaseError(f"{folder.name} came with the program and cannot be {done}; choose a model of your own.")
    if folder.parent.resolve() != user_library().resolve() or not folder.is_dir():
        raise CeaseError(f"{folder} is no model of your library ({user_library()}); choose one that lies there.")


def _forget(trash: Path, before: int) -> None:
    for kept in trash.iterdir():
        when = kept.suffix.removeprefix(".")
        if when.isdigit() and int(when) < before:
            shutil.rmtree(kept, ignore_errors=True)


@contextmanager
def _writing(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CeaseError(f"{what}: {write_reason(error)}.") from error
