"""Any model into the user's library: what a file is, who reads it, and the trial that it has to pass."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from safetensors.torch import save_file

from cease_core.errors import CeaseError
from cease_core.io.files import reading
from cease_core.models.architectures import Backbone
from cease_core.models.card import ModelCard
from cease_core.models.checkpoint import CARD, WEIGHTS, save_model, weights_file
from cease_core.models.foreign.bundle import CONFIGS, METADATA, draft_bundle
from cease_core.models.foreign.drafts import Choices, Consent, Draft, refuse, refuse_idle
from cease_core.models.foreign.nnunet import draft_nnunet
from cease_core.models.foreign.programs import draft_program
from cease_core.models.foreign.weights import draft_weights
from cease_core.models.segmenter import SegmentationModel
from cease_core.models.shelf import import_model, import_source, take_in, try_stored, write_card

Source = Literal["own", "bundle", "program", "nnunet", "weights"]

KINDS = (
    "a model folder of this program or a zip of one, a MONAI bundle, a TorchScript file, a torch.export .pt2 file, "
    "an nnU-Net results folder, or weights (.safetensors, .pt, .pth)"
)

_BUNDLE = (METADATA, *CONFIGS)


@dataclass(frozen=True)
class Imported:
    """A model that was taken into the library.

    Parameters
    ----------
    folder
        Where it lies.
    remarks
        What the user should know about it, a sentence each.
    """

    folder: Path
    remarks: tuple[str, ...] = ()


def source_of(path: Path) -> Source:
    """What a file or folder holds, by names alone: nothing is opened that could run.

    Raises
    ------
    CeaseError
        If it is nothing that can be imported.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise CeaseError(f"{path} does not exist; choose {KINDS}.")
    if path.suffix.lower() == ".safetensors":
        return "weights"
    with reading(path, "a zip archive"):
        names = _entries(path)
    if names is not None:
        found = _archive(names)
        if found is not None:
            return found
    elif path.suffix.lower() in (".pt", ".pth", ".ckpt", ".bin", ".tar"):
        return "weights"
    raise CeaseError(f"{path.name} is no model that can be imported; choose {KINDS}.")


def _entries(path: Path) -> list[PurePosixPath] | None:
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return [PurePosixPath(n) for n in archive.namelist()]


def _archive(names: list[PurePosixPath]) -> Source | None:
    last = {n.name for n in names}
    if any("/".join(n.parts[-2:]) in _BUNDLE for n in names):
        return "bundle"
    if CARD in last:
        return "own"
    # Entries of torch's own archives lie in one folder of any name: code in a program, archive_format in an export.
    if any(n.parts[1:2] == ("code",) for n in names) or {"archive_format", "serialized_exported_program.json"} & last:
        return "program"
    return "weights" if "data.pkl" in last else None


def _folder(path: Path) -> Source:
    with reading(path, "a folder"):
        if (path / CARD).is_file():
            return "own"
        if any((path / name).is_file() for name in _BUNDLE):
            return "bundle"
        around = (path, path.parent, *sorted(p for p in path.iterdir() if p.is_dir()))
        if any((place / "plans.json").is_file() for place in around):
            return "nnunet"
    raise CeaseError(f"{path} is no model that can be imported; choose {KINDS}.")


def draft(kind: Source, source: Path, choices: Choices, consent: Consent) -> Draft:
    """Read a model that was made elsewhere.

    Raises
    ------
    CeaseError
        If it cannot be read, is unsafe, or ``choices`` leave something open that the files do not tell.
    """
    if kind == "bundle":
        return draft_bundle(source, choices)
    if kind == "weights":
        return draft_weights(source, choices)
    return (draft_program if kind == "program" else draft_nnunet)(source, choices, consent)


def import_any(source: Path, choices: Choices | None = None, consent: Consent = refuse) -> Imported:
    """Take a model into the user's library, once it has shown that it works.

    Parameters
    ----------
    source
        See `KINDS`.
    choices
        What the user says about it; a model of this program takes the name alone.
    consent
        Asks the user before a file is opened that may run code; by default nobody agrees.

    Raises
    ------
    NameTakenError
        If there is a model of that name.
    CeaseError
        If it is no model, is damaged, too large or unsafe, does not work, or cannot be written; the library is then
        as it was.
    """
    choices = choices or Choices()
    if (path := import_source(source)) != source and (path / CARD).is_file():
        source = path
    kind = source_of(source)
    if kind == "own":
        refuse_idle(
            choices, source.name, "a model of this program, whose card says it", set(Choices.model_fields) - {"name"}
        )
        return Imported(import_model(source, name=choices.name, consent=consent))
    read = draft(kind, source, choices, consent)
    return Imported(take_in(source, lambda stage: _fill(stage, read)), read.remarks)


def _fill(stage: Path, draft: Draft) -> ModelCard:
    """Write a draft into a folder, and make sure that what was written works."""
    card = draft.card
    if isinstance(draft.network, Backbone):
        save_model(SegmentationModel(card, draft.network), stage)
    elif draft.program is not None:
        shutil.copyfile(draft.program, weights_file(stage, card))
    else:
        # Layers that share a tensor each get it: a file of weights knows no sharing.
        tensors = {k: v.detach().cpu().clone().contiguous() for k, v in draft.network.state_dict().items()}
        save_file(tensors, stage / WEIGHTS)
    write_card(stage, card)
    try_stored(stage, card)
    return card
