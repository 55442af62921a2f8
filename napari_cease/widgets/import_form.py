"""What is asked about a network that was made elsewhere, where its files do not tell it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QMessageBox,
    QVBoxLayout,
    QWidget,
)

from cease_core.errors import first_fault
from cease_core.models import ARCHITECTURES
from cease_core.models.card import WindowRule
from cease_core.models.foreign.drafts import Choices, Question
from cease_core.models.importing import Source

FOUND_OUT = "found out"

MODES = {
    "One structure (one channel, or sigmoid)": "binary",
    "Several, each pixel one of them (softmax)": "multiclass",
    "Several that may overlap (sigmoids)": "multilabel",
}
ACTIVATIONS = {
    FOUND_OUT: None,
    "logits: none inside": "none",
    "probabilities: sigmoid inside": "sigmoid",
    "probabilities: softmax inside": "softmax",
}
INTENSITIES = {
    "0 to 1 over the window": "unit",
    "mean 0, deviation 1": "zscore",
    "0 to 1 over the whole scan": "minmax",
    "as in the file": "none",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""As a card's, which is a folder's, too."""
DIMENSIONS = {FOUND_OUT: None, "2-D images": 2, "3-D volumes": 3}


class ImportForm(QDialog):
    """A form for `Choices`; what is left empty is left to the files.

    Parameters
    ----------
    source
        What is imported.
    kind
        What it is: weights alone need an architecture.
    choices
        What is known so far.
    fault
        Why the last attempt failed; empty for a first one.
    """

    def __init__(
        self, source: Path, kind: Source, choices: Choices, fault: str = "", parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self.setWindowTitle(f"Import {source.name}")
        self.setMinimumWidth(460)
        self._known = choices
        column = QVBoxLayout(self)
        self.fault = QLabel(fault or "Say what the file does not tell; the rest is found out.")
        self.fault.setWordWrap(True)
        self.fault.setTextFormat(Qt.TextFormat.PlainText)
        column.addWidget(self.fault)
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        column.addLayout(form)

        self.name = _line(choices.name, "the file's name", "Name in the library: letters, digits, dots and dashes")
        self.classes = _line(
            ", ".join(choices.classes or ()),
            "liver, tumour",
            "Foreground classes, in the order of the channels",
        )
        self.mode = _choice({FOUND_OUT: None} | MODES, choices.mode, "What the network's channels mean")
        self.activation = _choice(ACTIVATIONS, choices.activation, "Whether it returns logits or probabilities")
        self.ndim = _choice(DIMENSIONS, choices.ndim, "Axes that the network sees at once")
        window = choices.window
        fixed = window is not None and window.kind == "fixed"
        self.normalise = _choice(
            {FOUND_OUT: None} | INTENSITIES, choices.normalise, "Which intensities the network was trained with"
        )
        self.window = _line(
            f"{window.low:g}, {window.high:g}" if window is not None and fixed else "",
            _percentiles(window) if window is not None and not fixed else "percentiles of each scan",
            "Intensities in the scan's unit that count as 0 and 1; ε is a fraction of this interval",
        )
        self.spacing = _line(
            ", ".join(f"{s:g}" for s in choices.spacing or ()),
            "each scan's own",
            "Voxel size in mm along the network's axes; scans are resampled to it and masks come back",
        )
        form.addRow("Name", self.name)
        form.addRow("Classes", self.classes)
        form.addRow("They are", self.mode)
        form.addRow("It returns", self.activation)
        form.addRow("It sees", self.ndim)
        form.addRow("It is given", self.normalise)
        form.addRow("Window", self.window)
        form.addRow("Voxel size", self.spacing)
        self.architecture = QComboBox()
        self.arguments = _line(
            json.dumps(choices.args) if choices.args else "",
            '{"channels": [16, 32, 64]}',
            "Arguments that the network was built with, as JSON",
        )
        if kind == "weights":
            self.architecture.setEditable(True)
            self.architecture.addItems(sorted(ARCHITECTURES))
            self.architecture.setEditText(choices.architecture or "")
            self.architecture.setToolTip("One of these, or the full name of a class of MONAI: monai.networks.nets.UNet")
            form.addRow("Architecture", self.architecture)
            form.addRow("Its arguments", self.arguments)
        self.buttons = QDialogButtonBox(
            QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel, parent=self
        )
        self.buttons.button(QDialogButtonBox.StandardButton.Ok).setText("Import")
        self.buttons.accepted.connect(self.accept)
        self.buttons.rejected.connect(self.reject)
        column.addWidget(self.buttons)

    def accept(self) -> None:
        """Close, if all can be understood."""
        try:
            self.choices()
        except ValidationError as error:
            self.fault.setText(f"{first_fault(error, 'the form')}; correct it.")
        except ValueError as error:
            self.fault.setText(str(error))
        else:
            super().accept()

    def choices(self) -> Choices:
        """What the form says, over what was known.

        Raises
        ------
        ValueError
            If an entry cannot be understood; the sentence says which.
        """
        name = self.name.text().strip()
        if name and not NAME.fullmatch(name):
            raise ValueError(
                "Name: write letters, digits, dots, dashes and underscores, beginning with a letter or a digit."
            )
        classes = tuple(c.strip() for c in self.classes.text().split(",") if c.strip())
        twice = next((c for c in classes if classes.count(c) > 1), None)
        if twice is not None:
            raise ValueError(f"Classes: {twice} is there {classes.count(twice)} times; give each class its own name.")
        spacing = _numbers(self.spacing.text(), "Voxel size")
        if any(s < 0 for s in spacing):
            raise ValueError("Voxel size: write numbers above 0, or 0 for an axis that stays as it is.")
        said: dict[str, Any] = {
            "name": name or None,
            "classes": classes or None,
            "mode": self.mode.currentData(),
            "activation": self.activation.currentData(),
            "ndim": self.ndim.currentData(),
            "normalise": self.normalise.currentData(),
            "spacing": spacing or None,
            "architecture": self.architecture.currentText().strip() or None,
            "args": _arguments(self.arguments.text()),
        }
        ends = _numbers(self.window.text(), "Window")
        if len(ends) not in (0, 2):
            raise ValueError("Window: write two numbers, such as -160, 240, or leave it empty.")
        if ends and not ends[1] > ends[0]:
            raise ValueError("Window: write the lower number first, such as -160, 240.")
        known = self._known.window
        window: Any = {"kind": "fixed", "low": ends[0], "high": ends[1]} if ends else None
        if not ends and known is not None and known.kind == "percentile":
            window = known
        return Choices.model_validate(self._known.model_dump() | said | {"window": window})


def ask_about(source: Path, kind: Source, choices: Choices, fault: str, parent: QWidget) -> Choices | None:
    """Ask the user with an `ImportForm`; None if they would rather not."""
    form = ImportForm(source, kind, choices, fault, parent)
    try:
        return form.choices() if form.exec() == QDialog.DialogCode.Accepted else None
    finally:
        form.deleteLater()


def ask_consent(question: Question, parent: QWidget) -> bool:
    """Ask before a file may run code; no is the answer that needs no thought."""
    box = QMessageBox(parent)
    box.setIcon(QMessageBox.Icon.Warning)
    box.setWindowTitle("Open a file that may run code")
    box.setText(f"{question.why} Do you trust where {question.path.name} is from?")
    box.setInformativeText(f"Asked once for this very file.\nSHA-256 {question.sha256}")
    box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No)
    box.setDefaultButton(QMessageBox.StandardButton.No)
    try:
        return bool(box.exec() == QMessageBox.StandardButton.Yes)
    finally:
        box.deleteLater()


def _line(text: str | None, placeholder: str, tip: str) -> QLineEdit:
    line = QLineEdit(text or "")
    line.setPlaceholderText(placeholder)
    line.setToolTip(tip)
    return line


def _choice(entries: dict[str, Any], chosen: Any, tip: str) -> QComboBox:
    box = QComboBox()
    for text, value in entries.items():
        box.addItem(text, value)
    box.setCurrentIndex(list(entries.values()).index(chosen))
    box.setToolTip(tip)
    return box


def _percentiles(window: WindowRule) -> str:
    return f"percentiles {window.low:g} to {window.high:g} of each scan"


def _numbers(text: str, name: str) -> tuple[float, ...]:
    """Finite numbers; a minus may be the sign or the dash that keyboards have."""
    told = f"{name}: write numbers with commas between them, or leave it empty."
    try:
        found = tuple(float(part) for part in text.replace("−", "-").split(",") if part.strip())
    except ValueError as error:
        raise ValueError(told) from error
    if not all(map(math.isfinite, found)):
        raise ValueError(told)
    return found


def _arguments(text: str) -> dict[str, Any] | None:
    if not text.strip():
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError('Its arguments: write JSON, such as {"channels": [16, 32, 64]}.') from error
    if not isinstance(found, dict):
        raise ValueError('Its arguments: write them by name, such as {"channels": [16, 32, 64]}.')
    return found
