"""The figures of both models at the present ε."""

from __future__ import annotations

import math

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QGridLayout, QLabel, QSizePolicy, QWidget

from cease_core.scan import Scan
from napari_cease.jobs.exploration import SIDES, Opened, Side, View
from napari_cease.layers import COLOURS, MARKS, TITLES
from napari_cease.units import in_unit

ROWS = {
    "clean": ("Dice, clean", "Overlap of the model's mask with the reference, without attack"),
    "dice": ("Dice, attacked", "Overlap under the attack at the present ε"),
    "target": ("Dice, target", "Overlap with the mask to reach, under the attack at the present ε"),
    "linf": ("‖δ‖∞", "Largest change of any value"),
    "psnr": ("PSNR", "Peak signal-to-noise ratio of the attacked scan; the window is the peak"),
    "ssim": ("SSIM", "Structural similarity of the attacked and the clean scan"),
}


class Readout(QWidget):
    """A row for each figure, a column for each model."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(4)
        grid.setVerticalSpacing(2)
        self.figures: dict[tuple[str, Side], QLabel] = {}
        self.target_row: list[QLabel] = []
        for column, side in enumerate(SIDES, start=1):
            head = QLabel(f"<b style='color:{COLOURS[side]}'>{MARKS[side]} {TITLES[side]}</b>")
            head.setAlignment(Qt.AlignmentFlag.AlignRight)
            grid.addWidget(head, 0, column)
        for row, (key, (title, tip)) in enumerate(ROWS.items(), start=1):
            label = QLabel(title)
            label.setToolTip(tip)
            grid.addWidget(label, row, 0)
            for column, side in enumerate(SIDES, start=1):
                value = QLabel("–")
                value.setAlignment(Qt.AlignmentFlag.AlignRight)
                value.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
                self.figures[key, side] = value
                grid.addWidget(value, row, column)
            if key == "target":
                self.target_row = [label, *(self.figures[key, side] for side in SIDES)]

    def show_target(self, shown: bool) -> None:
        """Show or hide the row of the mask to reach."""
        for widget in self.target_row:
            widget.setVisible(shown)

    def show_figures(self, side: Side, view: View | None, opened: Opened | None, scan: Scan | None) -> None:
        """Show one model's figures; a dash for what is not known."""
        values = dict.fromkeys(ROWS, "–")
        if opened is not None:
            values["clean"] = f"{opened.dice:.3f}"
        if view is not None and opened is not None and scan is not None:
            d = view.distortion
            values["dice"] = f"{view.dice:.3f}"
            values["target"] = "–" if view.target_dice is None else f"{view.target_dice:.3f}"
            values["linf"] = in_unit(d.linf * opened.window.width, scan.unit)
            values["psnr"] = "∞" if math.isinf(d.psnr) else f"{d.psnr:.1f} dB"
            values["ssim"] = "–" if math.isnan(d.ssim) else f"{d.ssim:.3f}"
        for key, text in values.items():
            self.figures[key, side].setText(text)
