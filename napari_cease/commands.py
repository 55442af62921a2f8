"""What the plugin adds to napari's menus: the *Layers* menu acts on the layer that is selected, *File* on the session.

napari hands a plugin's command a viewer that shows public names alone, whose layers are no longer the same objects; so
the current viewer is asked for here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from napari.layers import Image, Labels, Shapes
from napari.utils.notifications import show_error, show_info
from qtpy.QtWidgets import QFileDialog, QMessageBox

from cease_core.errors import CeaseError
from cease_core.io import WRITABLE_LABELS
from napari_cease.docks import explorer_of
from napari_cease.layers import is_mask, role_of
from napari_cease.saved_session import SUFFIX
from napari_cease.widgets.window import main_window
from napari_cease.writers import save_labels

SESSION_FILES = f"Sessions (*{SUFFIX})"
MASK_FILES = f"Masks ({' '.join('*' + suffix for suffix in WRITABLE_LABELS)})"


def attack_layer() -> None:
    """Open the selected image in the attack explorer."""
    _said(_attack_layer)


def use_as_region() -> None:
    """Let an attack change the scan only where the selected labels or shapes lie."""
    _said(_use_as_region)


def save_mask() -> None:
    """Save the selected labels onto the grid of the scan's file."""
    _said(_save_mask)


def save_session() -> None:
    """Save scans, models, choices, drawn layers and the view as one file."""
    _said(_save_session)


def open_session() -> None:
    """Open what `save_session` has saved."""
    _said(_open_session)


# --- what they do --------------------------------------------------------------------------------------------


def _attack_layer() -> None:
    viewer, layer = _selected((Image,), "an image layer")
    if role_of(layer)[0] not in (None, "scan"):
        raise CeaseError(f"{layer.name} is made by the explorer; select the scan that it belongs to.")
    explorer_of(viewer).scan.value = layer


def _use_as_region() -> None:
    viewer, layer = _selected((Labels, Shapes), "a labels or shapes layer")
    if not is_mask(layer):
        raise CeaseError(f"{layer.name} is made by the explorer; select labels or shapes of your own.")
    explorer = explorer_of(viewer)
    if explorer.session.scan is None:
        raise CeaseError("no scan is chosen in the explorer; choose one, then use the layer as its region.")
    explorer.region.chosen.emit(layer)
    explorer.goal.expand()


def _save_mask() -> None:
    viewer, layer = _selected((Labels,), "a labels layer")
    scan = layer.metadata.get("cease", {}).get("scan")
    folder = Path.cwd() if scan is None or scan.path is None else scan.path.parent
    name = layer.name if scan is None else scan.name
    path = ask_where(viewer, "Save the mask on its scan's grid", folder / f"{name}_mask.nii.gz", MASK_FILES)
    if path is not None:
        data, options, _ = layer.as_layer_data_tuple()
        save_labels(str(path), data, options)
        show_info(f"{layer.name} was saved as {path.name}.")


def _save_session() -> None:
    viewer = _viewer()
    keeper = explorer_of(viewer).keeper
    path = ask_where(viewer, "Save the session", Path.cwd() / f"session{SUFFIX}", SESSION_FILES)
    if path is None:
        return
    if path.suffix != SUFFIX:
        # The user was asked about the name as typed, not about this one.
        path = path.with_name(path.name + SUFFIX)
        if path.exists() and not _may_replace(viewer, path):
            return
    keeper.save_as(path)


def _may_replace(viewer: Any, path: Path) -> bool:
    buttons = QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No
    asked = f"{path.name} already exists. Replace it?"
    answer = QMessageBox.question(
        main_window(viewer), "Save the session", asked, buttons, QMessageBox.StandardButton.No
    )
    return bool(answer == QMessageBox.StandardButton.Yes)


def _open_session() -> None:
    viewer = _viewer()
    keeper = explorer_of(viewer).keeper
    path = ask_which(viewer, "Open a session", SESSION_FILES)
    if path is not None:
        keeper.open_file(path)


def ask_where(viewer: Any, question: str, proposed: Path, kinds: str) -> Path | None:
    """Ask for the name of a new file; None if the user would rather not."""
    found, _ = QFileDialog.getSaveFileName(main_window(viewer), question, str(proposed), kinds)
    return Path(found) if found else None


def ask_which(viewer: Any, question: str, kinds: str) -> Path | None:
    """Ask for a file that is there; None if the user would rather not."""
    found, _ = QFileDialog.getOpenFileName(main_window(viewer), question, "", kinds)
    return Path(found) if found else None


def _viewer() -> Any:
    viewer = napari.current_viewer()
    if viewer is None:
        raise CeaseError("there is no napari window; open one first.")
    return viewer


def _selected(kinds: tuple[type, ...], wanted: str) -> tuple[Any, Any]:
    viewer = _viewer()
    layer = viewer.layers.selection.active
    if not isinstance(layer, kinds):
        raise CeaseError(f"no such layer is selected; select {wanted} in the list first.")
    return viewer, layer


def _said(act: Callable[[], None]) -> None:
    """A `CeaseError` becomes its sentence in a notification."""
    try:
        act()
    except CeaseError as error:
        show_error(str(error))
