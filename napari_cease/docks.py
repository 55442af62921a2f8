"""The docks as napari makes them, joined: what one of them finds, another shows.

None of them knows another until it is needed: whoever wants to show a scan or a model asks for the viewer's explorer,
which is opened if it is not there.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Layer
from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QDockWidget, QWidget

from cease_core.data import Case, find_cases, load_case
from cease_core.data.manifest import read_json
from cease_core.errors import CeaseError
from cease_core.models import ModelCard, available_models
from cease_core.models.card import same_classes
from cease_core.models.checkpoint import load_card
from cease_core.models.library import user_library
from cease_core.scan import LabelArray, Scan
from napari_cease.audit_session import ChosenCase
from napari_cease.choices import suits
from napari_cease.readers import scan_layers
from napari_cease.samples import labels_layer
from napari_cease.settings import place_library
from napari_cease.units import LEVELS
from napari_cease.widgets.audit import AuditDock
from napari_cease.widgets.explore import AttackExplorer
from napari_cease.widgets.models import ModelsDock
from napari_cease.widgets.train import TrainDock

if TYPE_CHECKING:
    import napari

PLUGIN, EXPLORER = "napari-cease", "Attack explorer"
COMPARED_AT = 8
"""ε in 1/255 at which a new model is first looked at: the one that defences are trained for by default."""


class Train(TrainDock):
    """Train a model in a process of its own; *Compare* shows it in the explorer."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        place_library()
        super().__init__(napari_viewer)
        self.compare.connect(self._show_pair)
        self.trained.connect(self._tell_others)

    def _show_pair(self, folder: Path) -> None:
        _said(compare, self.viewer, folder)

    def _tell_others(self) -> None:
        refresh(self.viewer)


class Audit(AuditDock):
    """Audit models in a process of its own; a row of its table opens in the explorer."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        place_library()
        super().__init__(napari_viewer)
        self.case_chosen.connect(self._show_case)
        self.audited.connect(self._tell_others)

    def _show_case(self, chosen: ChosenCase) -> None:
        _said(show_case, self.viewer, chosen)

    def _tell_others(self) -> None:
        refresh(self.viewer)


class Models(ModelsDock):
    """The library of models; one that is tried, or dropped on the canvas, goes to the explorer."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        place_library()
        super().__init__(napari_viewer)
        self.tried.connect(self._show_model)
        self.changed.connect(self._tell_others)

    def _show_model(self, folder: Path) -> None:
        _said(try_model, self.viewer, folder)

    def _tell_others(self) -> None:
        refresh(self.viewer, but=self)


# --- what docks ask of each other ----------------------------------------------------------------------------


def explorer_of(viewer: Any) -> AttackExplorer:
    """The viewer's attack explorer, opened if there is none, in front."""
    explorer = _docked(viewer, AttackExplorer)
    if explorer is None:
        _, explorer = viewer.window.add_plugin_dock_widget(PLUGIN, EXPLORER, tabify=True)
    to_front(explorer)
    return explorer  # type: ignore[no-any-return]


def to_front(dock: QWidget) -> None:
    """Show a dock that lies behind another."""
    wrapper = dock.parentWidget()
    while wrapper is not None and not isinstance(wrapper, QDockWidget):
        wrapper = wrapper.parentWidget()
    if wrapper is not None:
        wrapper.show()
        wrapper.raise_()


def refresh(viewer: Any, but: Any = None) -> None:
    """The library has changed: tell all docks that offer models, ``but`` the one that changed it."""
    for widget in list(viewer.window.dock_widgets.values()):
        if widget is but:
            continue
        if isinstance(widget, (AttackExplorer, AuditDock)):
            widget.offer_models()
        elif isinstance(widget, ModelsDock):
            widget.refresh()
        elif isinstance(widget, TrainDock):
            if not widget.session.alive:
                widget.session.library = user_library()
            widget.form.refresh_models()


def try_model(viewer: Any, folder: Path) -> None:
    """Show a model on the scan that is open, on the side that its card says.

    Raises
    ------
    CeaseError
        If no scan is open, or the model does not take it.
    """
    explorer = explorer_of(viewer)
    layer = explorer.scan.value
    if layer is None:
        raise CeaseError("no scan is open; open one, or a sample from File, Open Sample, then try the model on it.")
    models = {"undefended": explorer.session.undefended, "defended": explorer.session.defended}
    models[side_of(load_card(folder))] = folder
    explorer.choose(layer, explorer.labels.value, **models)


def compare(viewer: Any, folder: Path) -> None:
    """Show a model that was just trained beside an undefended one, on a case that its training did not use.

    Raises
    ------
    CeaseError
        If its data are no longer there and no scan is open.
    """
    card = load_card(folder)
    explorer = explorer_of(viewer)
    found = held_out(folder, card)
    if found is None:
        try_model(viewer, folder)
        show_info("The data of this model are no longer there: it is shown on the scan that was open.")
    else:
        case, seen = found
        layers = show(viewer, *load_case(case))
        explorer.choose(*layers, **pair(folder, card))
        if seen:
            show_info(
                f"No case was put aside: {case.name} was used to choose the checkpoint, so it flatters the model."
            )
    explorer.session.level = min(COMPARED_AT, explorer.session.top)


def show_case(viewer: Any, chosen: ChosenCase) -> None:
    """Show a row of an audit: its case, model, attack and ε.

    Raises
    ------
    CeaseError
        If the case or the model is no longer there.
    """
    if chosen.data is None or chosen.model_folder is None:
        raise CeaseError("the audit does not say where its scans and models are; open them by hand.")
    case = next((c for c in find_cases(chosen.data) if c.name == chosen.name), None)
    if case is None:
        raise CeaseError(f"the case {chosen.name} is no longer in {chosen.data}; put it back, then choose it again.")
    explorer = explorer_of(viewer)
    layers = show(viewer, *load_case(case))
    explorer.choose(*layers, **pair(chosen.model_folder, load_card(chosen.model_folder)))
    session = explorer.session
    key = chosen.settings.get("attack")
    if isinstance(key, str) and suits(key, targeted=False, twins=explorer.explorer.twins):
        session.choose_attack(key)
        session.parameters = {k: v for k, v in chosen.settings.items() if k in _EDITED}
    level = round(chosen.epsilon * LEVELS)
    session.top = max(session.top, level, 1)
    session.level = level
    if chosen.index is not None:
        viewer.dims.set_current_step(0, chosen.index)


_EDITED = ("steps", "restarts", "queries", "loss", "norm", "seed", "draws")


# --- parts ---------------------------------------------------------------------------------------------------


def side_of(card: ModelCard) -> str:
    """Where a model is shown: on the left without a defence, else on the right."""
    return "undefended" if card.defence == "none" else "defended"


def pair(folder: Path, card: ModelCard) -> dict[str, Path | None]:
    """A model and, on the other side, one of the same images and classes from the library, if there is one."""
    mine = side_of(card)
    other = "defended" if mine == "undefended" else "undefended"
    fits = [
        (path, theirs)
        for path, theirs in available_models().items()
        if side_of(theirs) == other and path != folder and _kind(theirs) == _kind(card) and same_classes(theirs, card)
    ]
    # Numbered classes fit many a model: the one that was made for such intensities is the likelier.
    fits.sort(key=lambda fit: fit[1].window.kind != card.window.kind)
    return {mine: folder, other: fits[0][0] if fits else None}


def held_out(folder: Path, card: ModelCard) -> tuple[Case, bool] | None:
    """A case of a model's data that its training did not use, and whether its checkpoint was chosen by it all the same.

    None where the data are not there any more.
    """
    place = next((p for p in (folder, user_library() / "runs" / folder.name) if (p / "data.json").is_file()), None)
    if place is None or card.data is None:
        return None
    try:
        content = read_json(place / "data.json")
        cases = find_cases(Path(content["folder"]))
    except (CeaseError, KeyError, TypeError):
        return None
    trained, chosen_by = set(card.data.train), set(card.data.validation)
    for seen, names in ((False, trained | chosen_by), (True, trained)):
        for case in cases:
            if case.name not in names:
                return case, seen
    return None


def show(viewer: Any, scan: Scan, labels: LabelArray) -> tuple[Any, Any]:
    """Layers of a scan and its mask; those that show the same already are used again."""
    for layer in viewer.layers:
        opened = layer.metadata.get("cease", {}).get("scan")
        if opened is not None and opened.name == scan.name and np.array_equal(opened.image, scan.image):
            mask = next((x for x in viewer.layers if x is not layer and _is_mask_of(x, opened)), None)
            if mask is not None:
                return layer, mask
    layers = [Layer.create(*data) for data in (*scan_layers(scan), labels_layer(labels, scan))]
    for layer in layers:
        viewer.add_layer(layer)
    return layers[0], layers[-1]


def _is_mask_of(layer: Any, scan: Scan) -> bool:
    return layer.metadata.get("cease", {}).get("scan") is scan and layer._type_string == "labels"


def _kind(card: ModelCard) -> tuple[Any, ...]:
    return card.ndim, card.channels, card.mode


def _docked(viewer: Any, kind: type) -> Any:
    for widget in viewer.window.dock_widgets.values():
        if isinstance(widget, kind):
            return widget
    return None


def _said(act: Any, *arguments: Any) -> None:
    """A `CeaseError` becomes its sentence in a notification."""
    try:
        act(*arguments)
    except CeaseError as error:
        show_error(str(error))
