"""How the chosen scan is looked at: the window of a CT, the frame of a time series."""

from __future__ import annotations

from typing import Any

from napari.layers import Image
from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, Signal
from qtpy.QtWidgets import QComboBox, QFormLayout, QSizePolicy, QSpinBox

from cease_core.io import WindowPreset, presets_for
from cease_core.scan import Scan
from napari_cease.explorer import Explorer
from napari_cease.jobs.worker import Worker
from napari_cease.layers import show_frame
from napari_cease.readers import open_scan
from napari_cease.units import unit_name
from napari_cease.widgets.parameters import modest

WINDOW_TIP = (
    "Intensities from black to white, for the eye alone: the scan's layers are shown in it, and the models go on "
    "seeing the window that is on their cards"
)
FRAME_TIP = "Volume of the series that is shown and attacked, from 0; read from its file when it is chosen"


class ScanView(QObject):
    """Two rows of a form, each there only for scans that it means something to.

    Parameters
    ----------
    explorer
        Whose scan it is.
    form
        Where the rows go, at its end.
    """

    shown = Signal()
    """Another frame has been read and put into the scan's layer."""

    def __init__(self, explorer: Explorer, form: QFormLayout) -> None:
        super().__init__(explorer)
        self.explorer = explorer
        self.form = form
        self.window = QComboBox()
        self.window.setToolTip(WINDOW_TIP)
        self.window.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.window.setMinimumWidth(120)
        self.frame = QSpinBox()
        self.frame.setToolTip(FRAME_TIP)
        # Typing 120 is no wish to see frames 1 and 12.
        self.frame.setKeyboardTracking(False)
        modest(self.frame)
        form.addRow("Window", self.window)
        form.addRow("Frame", self.frame)
        self._layer: Image | None = None
        self._worker: Worker | None = None
        self._reading: Image | None = None
        self.window.activated.connect(self._on_window)
        self.frame.valueChanged.connect(self._on_frame)
        explorer.session.events.scan.connect(self._mirror)
        self._mirror()

    def _mirror(self, _: Any = None) -> None:
        """Offer what fits the scan that is chosen now."""
        scan = self.explorer.session.scan
        layer = self.explorer.scan_layer if scan is not None else None
        if layer is not self._layer:
            self._watch(layer)
        self._offer_windows()
        frames = scan.metadata.get("frames", 1) if scan is not None else 1
        self.form.setRowVisible(self.frame, frames > 1)
        if scan is not None and frames > 1:
            before = self.frame.blockSignals(True)
            self.frame.setRange(0, frames - 1)
            self.frame.setSuffix(f"  (0 to {frames - 1})")
            if self._reading is None:
                self.frame.setValue(scan.metadata["frame"])
            self.frame.blockSignals(before)

    def _watch(self, layer: Image | None) -> None:
        if self._layer is not None:
            self._layer.events.contrast_limits.disconnect(self._offer_windows)
        self._layer = layer
        # A frame that is still being read was wanted of the scan before.
        self._reading = None
        if layer is not None:
            layer.events.contrast_limits.connect(self._offer_windows)

    def _offer_windows(self, _: Any = None) -> None:
        scan, layer = self.explorer.session.scan, self._layer
        presets = presets_for(scan) if scan is not None and layer is not None and not layer.rgb else ()
        self.form.setRowVisible(self.window, bool(presets))
        self.window.clear()
        if not presets or scan is None or layer is None:
            return
        low, high = layer.contrast_limits
        for preset in presets:
            self.window.addItem(f"{preset.name} ({_interval(*preset.window, scan.unit)})", preset)
        fitting = [i for i, preset in enumerate(presets) if tuple(preset.window) == (low, high)]
        if not fitting:
            self.window.addItem(f"adjusted ({_interval(low, high, scan.unit)})", None)
        self.window.setCurrentIndex(fitting[0] if fitting else len(presets))

    def _on_window(self, index: int) -> None:
        preset: WindowPreset | None = self.window.itemData(index)
        if preset is not None and self._layer is not None:
            self._layer.contrast_limits = tuple(preset.window)

    def _on_frame(self, frame: int) -> None:
        scan, layer = self.explorer.session.scan, self._layer
        if scan is None or scan.path is None or layer is None:
            return
        if self._worker is None:
            self._worker = worker = Worker(self)
            worker.end_with(self)
            self._worker.said.connect(self._on_read)
            self._worker.failed.connect(self._on_failed)
        path = scan.path
        self._reading = layer
        self._worker.submit(lambda emit, stopped: emit(open_scan(path, frame)))

    def _on_read(self, generation: int, scan: object) -> None:
        if self._worker is None:
            return
        # Meanwhile another frame, or another scan altogether, may have been chosen.
        if generation != self._worker.generation:
            return
        layer, self._reading = self._reading, None
        if layer is None or layer is not self._layer:
            self._mirror()
            return
        assert isinstance(scan, Scan)
        show_frame(layer, scan)
        self.shown.emit()

    def _on_failed(self, generation: int, sentence: str) -> None:
        if self._worker is not None and generation == self._worker.generation:
            self._reading = None
            show_error(sentence)
            self._mirror()

    def shutdown(self) -> None:
        """Stop reading and listening."""
        self._watch(None)
        self.explorer.session.events.scan.disconnect(self._mirror)
        self.rest()

    def rest(self) -> None:
        """Let the thread go until another frame is wanted."""
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None


def _interval(low: float, high: float, unit: str) -> str:
    return f"{low:g} to {high:g} {unit_name(unit)}".replace("-", "−")
