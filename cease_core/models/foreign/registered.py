"""Networks of this Python process as models: whatever `torch.nn` can express, without any file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cease_core.errors import CeaseError
from cease_core.models.card import Mode, ModelCard, WindowRule
from cease_core.models.foreign.cards import SCAN_WINDOW, class_infos, make_card
from cease_core.models.foreign.model import ForeignModel
from cease_core.models.foreign.spec import Foreign
from cease_core.models.foreign.trial import try_model

PLACE = Path("registered:")
"""Where registered models seem to lie: a folder that no disk has."""

_models: dict[Path, ForeignModel] = {}

_NOT_ASKED = ("kind", "target", "args", "sha256")
_ASKED = tuple("roi" if name == "window" else name for name in Foreign.model_fields if name not in _NOT_ASKED)


def register_model(
    network: nn.Module,
    *,
    name: str,
    classes: Sequence[str],
    ndim: int,
    channels: int,
    mode: Mode,
    window: WindowRule | tuple[float, float] | None = None,
    title: str | None = None,
    **asked: Any,
) -> ForeignModel:
    """Make a network of this process a model that can be opened, attacked and audited like any other.

    It is gone when the process ends, and other processes do not see it.

    Parameters
    ----------
    network
        Called with images (N, channels, *spatial); it is put into evaluation mode.
    name
        What `find_model` calls it. A model that was registered under it before is replaced.
    classes
        Names of the foreground classes in the order of the network's channels.
    ndim, channels, mode
        As in `ModelCard`.
    window
        Intensity window, or its rule; by default between the percentiles 0.5 and 99.5 of each scan. It is the unit
        of ε; the network sees intensities in the scan's own unit, after the ``steps``.
    title
        What people read; by default the name.
    **asked
        Fields of `Foreign`, where its ``window`` is called ``roi``.

    Returns
    -------
    ForeignModel
        The model; its folder, as far as the library is concerned, is ``PLACE / name``.

    Raises
    ------
    CeaseError
        If the description does not fit, or the network does not do what it says: see `try_model`.

    Examples
    --------
    >>> from torch import nn
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1))
    >>> model = register_model(network, name="mine", classes=["lesion"], ndim=2, channels=1, mode="binary")
    >>> model.card.title
    'mine'
    >>> unregister_model("mine")
    """
    unknown = [key for key in asked if key not in _ASKED]
    if unknown:
        raise CeaseError(f"register_model knows no {unknown[0]!r}; choose among {', '.join(_ASKED)}.")
    fields = {"window" if key == "roi" else key: value for key, value in asked.items()}
    rule = {"kind": "fixed", "low": window[0], "high": window[1]} if isinstance(window, tuple) else window
    card = make_card(
        name=name,
        title=title or name,
        architecture=type(network).__name__,
        ndim=ndim,
        channels=channels,
        classes=class_infos(classes),
        mode=mode,
        window=rule or SCAN_WINDOW,
        foreign={"kind": "registered", **fields},
    )
    model = ForeignModel(card, network).eval()
    try_model(model)
    _models[PLACE / name] = model
    return model


def unregister_model(name: str) -> None:
    """Forget a registered model.

    Raises
    ------
    CeaseError
        If there is none of that name.
    """
    if _models.pop(PLACE / name, None) is None:
        known = ", ".join(place.name for place in _models) or "none yet"
        raise CeaseError(f"no model called {name!r} is registered; give one of: {known}.")


def registered() -> dict[Path, ModelCard]:
    """Cards of all registered models by their place, in the order in which they came."""
    return {place: model.card for place, model in _models.items()}


def registered_model(place: str | Path) -> ForeignModel | None:
    """The model registered under a place; None for any other folder.

    Raises
    ------
    CeaseError
        If the place is one of a registered model, but not of this process.
    """
    place = Path(place)
    if place.parent != PLACE:
        return None
    if place not in _models:
        raise CeaseError(
            f"{place.name} is not registered in this Python process; register it here, or export it with torch.export "
            "and import that file."
        )
    return _models[place]
