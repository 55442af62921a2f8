"""Checkpoints: one folder with ``model.safetensors`` and ``card.json``, never a pickle.

A model that was trained with more than its segmentation head may have ``heads.safetensors`` beside them: what was
dropped after the training, for attacks alone. Nothing that uses the model reads it.

A network that was made elsewhere and comes as a program has that in place of the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cease_core.errors import CeaseError, one_line
from cease_core.models.card import ModelCard
from cease_core.models.foreign.classes import build_network
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.foreign.programs import open_program
from cease_core.models.foreign.registered import registered_model
from cease_core.models.foreign.spec import PROGRAMS
from cease_core.models.segmenter import SegmentationModel

WEIGHTS, CARD, HEADS = "model.safetensors", "card.json", "heads.safetensors"

_OWNER = "sha256 of model.safetensors"


def save_model(
    model: SegmentationModel, folder: str | Path, *, half: bool = False, heads: Mapping[str, Tensor] | None = None
) -> Path:
    """Write a checkpoint, replacing an older one only when the new one is complete.

    Parameters
    ----------
    half
        Store the model's floating-point tensors in 16 bits, for a file of half the size; `load_model` makes them 32
        again.
    heads
        Weights of the heads that belong to these of the model, for `read_heads`. Without any, those of an older
        checkpoint go.

    Raises
    ------
    CeaseError
        If the folder cannot be written.
    """
    folder = Path(folder)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.backbone.state_dict().items()}
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    try:
        weights = save(tensors)
        files = {WEIGHTS: weights, CARD: (model.card.model_dump_json(indent=1) + "\n").encode()}
        if heads is not None:
            kept = {k: v.detach().cpu().contiguous() for k, v in heads.items()}
            files[HEADS] = save(kept, metadata={_OWNER: hashlib.sha256(weights).hexdigest()})
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for name, content in files.items():
                (Path(scratch) / name).write_bytes(content)
            for name in files:
                os.replace(Path(scratch) / name, folder / name)
        if heads is None:
            (folder / HEADS).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # a full disk is an OSError for the card, and not for the weights
        reason = error.strerror if isinstance(error, OSError) else error
        raise CeaseError(f"cannot write the model to {folder}: {reason}; choose another folder.") from error
    return folder


def load_card(folder: str | Path) -> ModelCard:
    """Read a checkpoint's card alone.

    Raises
    ------
    CeaseError
        If it is missing or not a card.
    """
    known = registered_model(folder)
    if known is not None:
        return known.card
    path = Path(folder) / CARD
    try:
        return ModelCard.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CeaseError(
            f"{folder} holds no {CARD}; a model is a folder with {WEIGHTS} and {CARD}, choose such a folder."
        ) from error
    except OSError as error:
        raise CeaseError(f"cannot read {path}: {error.strerror}; check the folder's permissions.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = one_line(".".join(str(p) for p in first["loc"])) if first["loc"] else "card"
        raise CeaseError(f"{path} is not a valid model card ({where}: {first['msg']}); correct that entry.") from error
    except (ValueError, RecursionError) as error:
        raise CeaseError(f"{path} is not valid JSON ({one_line(error)}); export the model again.") from error


def weights_file(folder: str | Path, card: ModelCard) -> Path:
    """The file that makes a model what it is: its weights, or the program that holds them."""
    return Path(folder) / PROGRAMS.get(card.foreign.kind if card.foreign else "", WEIGHTS)


def open_model(folder: str | Path) -> SegmentationModel | ForeignModel:
    """Load any model of a library in evaluation mode, wherever it was made.

    Parameters
    ----------
    folder
        A model's folder, or the place that a registered model goes by.

    Raises
    ------
    CeaseError
        As in `load_model`, or if the model is a program that the user has not agreed to run.
    """
    folder = Path(folder)
    known = registered_model(folder)
    if known is not None:
        return known
    card = load_card(folder)
    if card.foreign is None:
        return load_model(folder)
    if card.foreign.kind in PROGRAMS:
        return ForeignModel(card, open_program(folder, card)).eval()
    # A value takes a byte at least, so a small file cannot ask for a large network.
    most = _weights(folder).stat().st_size
    network = build_network(card.foreign.target, card.foreign.args, most=most)
    _fill(network, folder, card.architecture)
    return ForeignModel(card, network).eval()


def load_model(folder: str | Path) -> SegmentationModel:
    """Load a model with one of our architectures in evaluation mode.

    Parameters
    ----------
    folder
        Folder with ``model.safetensors`` and ``card.json``.

    Raises
    ------
    CeaseError
        If a file is missing or damaged, tensors do not fit the card's architecture, or the network was made
        elsewhere.
    """
    folder = Path(folder)
    card = load_card(folder)
    if card.foreign is not None:
        raise CeaseError(
            f"{card.title} was made elsewhere, so it can be attacked and audited but not trained on; choose a model "
            "with one of the architectures of this program."
        )
    model = SegmentationModel(card)
    _fill(model.backbone, folder, card.architecture)
    return model.eval()


def _weights(folder: Path) -> Path:
    """The file of weights in a folder."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CeaseError(f"{folder} holds no {WEIGHTS}; copy the whole model folder, not the card alone.")
    return path


def _fill(network: nn.Module, folder: Path, architecture: str) -> None:
    """Give a network the weights in a folder."""
    path = _weights(folder)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CeaseError(f"{path} is damaged ({one_line(error)}); copy or download the model again.") from error
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in tensors:
            raise CeaseError(f"{path} lacks the tensor {name!r} that {architecture} needs; export the model again.")
        if tensors[name].shape != tensor.shape:
            raise CeaseError(
                f"{path}: tensor {name!r} has shape {tuple(tensors[name].shape)}, but the card's "
                f"{architecture} needs {tuple(tensor.shape)}; the card and the weights belong to different models."
            )
    network.load_state_dict({k: tensors[k] for k in expected})


def read_heads(folder: str | Path) -> dict[str, Tensor] | None:
    """The weights of the heads that lie beside a model; None if there are none, as in a model trained without any.

    Raises
    ------
    CeaseError
        If the file is damaged, or belongs to other weights than those beside it.
    """
    path = Path(folder) / HEADS
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            owner = (file.metadata() or {}).get(_OWNER)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CeaseError(
            f"{path} is damaged ({one_line(error)}); copy the whole model folder again, or delete it."
        ) from error
    try:
        weights = (Path(folder) / WEIGHTS).read_bytes()
    except OSError as error:
        raise CeaseError(f"{folder} holds no readable {WEIGHTS}; copy the whole model folder.") from error
    if owner != hashlib.sha256(weights).hexdigest():
        raise CeaseError(
            f"{path} belongs to other weights than the {WEIGHTS} beside it; copy the whole model folder again, or "
            "delete it."
        )
    return tensors
