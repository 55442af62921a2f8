"""The explorer's keys: in its dock, and on the viewer's canvas.

In the dock the arrow keys change ε, unless a field or a slider that uses them has the focus. On the canvas they
stay napari's own as long as there are slices to go through; with Alt they change ε there too. Space shows the
clean scan and its masks, and the attacked ones again, except while a tool such as a brush is in use on the canvas:
then it moves the view, as everywhere in napari.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtGui import QKeyEvent

from napari_cease.session import ExplorerSession

STEP_TIP = "← and → change ε by 1/255 (on a canvas with slices: Alt+← and Alt+→)"
TOGGLE_TIP = "Space switches between the clean scan and this ε"

_STEPS = {Qt.Key.Key_Left: -1, Qt.Key.Key_Right: 1}
_FREE = (Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.AltModifier)


def pressed(event: QKeyEvent, session: ExplorerSession) -> bool:
    """Answer a key that no widget of the dock has used; returns whether it was one of ours."""
    modifiers = event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier
    if event.key() in _STEPS and modifiers in _FREE:
        session.step(_STEPS[Qt.Key(event.key())])
        return True
    if event.key() == Qt.Key.Key_Space and modifiers == Qt.KeyboardModifier.NoModifier:
        if not event.isAutoRepeat():
            session.toggle_clean()
        return True
    return False


class CanvasKeys:
    """Keys of a viewer's canvas, bound until they are released.

    Parameters
    ----------
    viewer
        Whose canvas it is.
    session
        What the keys change.
    """

    def __init__(self, viewer: ViewerModel, session: ExplorerSession) -> None:
        self.viewer = viewer
        self.session = session
        bound: dict[str, Callable[[Any], Any]] = {
            "Space": self._space,
            "Left": lambda _: self._arrow(-1),
            "Right": lambda _: self._arrow(1),
            "Alt-Left": lambda _: session.step(-1),
            "Alt-Right": lambda _: session.step(1),
        }
        # What somebody else has bound comes back in the end.
        self._before = {key: viewer.bind_key(key, slot, overwrite=True) for key, slot in bound.items()}

    def release(self) -> None:
        """Give the keys back."""
        for key, slot in self._before.items():
            self.viewer.bind_key(key, slot, overwrite=True)
        self._before.clear()

    def _arrow(self, by: int) -> None:
        dims = self.viewer.dims
        if any(dims.nsteps[axis] > 1 for axis in dims.not_displayed):
            axis = dims.last_used
            dims.set_current_step(axis, dims.current_step[axis] + by)
        else:
            self.session.step(by)

    def _space(self, _: Any) -> Iterator[None]:
        layer: Any = self.viewer.layers.selection.active
        if layer is None or layer.mode == "pan_zoom":
            self.session.toggle_clean()
            return
        before, layer.mode = layer.mode, "pan_zoom"
        yield
        layer.mode = before
