"""What docks need of napari's window and it does not offer: its end, and what is dropped on the canvas.

napari 0.9 warns whoever reaches past its public names from a dock; there is no public way to either, and the project
does not allow the version in which this one ends.
"""

import warnings
from typing import Any

from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QWidget


def main_window(viewer: Any) -> Any:
    """The main window, whose events tell of its end: napari neither closes nor destroys a removed dock at once."""
    return _private(viewer, "_qt_window")


def canvas(viewer: Any) -> Any:
    """What takes drops; None for a viewer without a window."""
    return _private(viewer, "_qt_viewer")


def end_if_removed(dock: Any, event: QEvent | None) -> None:
    """Shut a dock down that has lost its parent, which is how napari removes it; it leaves the widget to us."""
    assert isinstance(dock, QWidget)
    if event is not None and event.type() == QEvent.Type.ParentChange and dock.parent() is None and dock.isHidden():
        dock.shutdown()
        dock.deleteLater()


def _private(viewer: Any, name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return getattr(viewer.window, name, None)
