"""The train dock's form: every choice of a `TrainingSession`, shown and set. The session alone holds them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from napari.components import ViewerModel
from napari.layers import Image, Labels
from pydantic import ValidationError
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QFormLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QVBoxLayout,
    QWidget,
)

from cease_core.defences.presets import NOTES
from cease_core.errors import CeaseError
from cease_core.models import available_models
from cease_core.models.architectures import ARCHITECTURES
from cease_core.models.checkpoint import load_card
from cease_core.models.library import user_library
from cease_core.training import TrainingConfig
from napari_cease.jobs.training_recipe import Pair
from napari_cease.trainer import labelled, pair_of
from napari_cease.training_session import TrainingSession
from napari_cease.widgets.fold import Fold
from napari_cease.widgets.grouped_box import Choice, GroupedBox
from napari_cease.widgets.parts import align, browse_button, empty_form, outline_boxes, real, row, tip_of, whole, words

AUTO = "auto"
RANDOM = "random weights"
_GROUPS = {
    "": ("cease", "cease_reuse", "none"),
    "Adversarial training": ("at", "reuse_at", "trades", "mart", "fast_at", "free_at", "segpgd_at", "ddc_at", "vaft"),
    "Parts of CEASE": ("augment", "contrastive", "contrastive_at", "multitask", "multitask_at"),
    "Other": ("distillation",),
}
_TITLES = {
    "cease": "CEASE",
    "cease_reuse": "CEASE, fewer passes",
    "none": "none (undefended)",
    "at": "adversarial training",
    "reuse_at": "AT, fewer passes",
    "trades": "TRADES",
    "mart": "MART",
    "fast_at": "Fast AT",
    "free_at": "Free AT",
    "segpgd_at": "SegPGD AT",
    "ddc_at": "DDC AT",
    "vaft": "VAFT",
}
_UNITS = {"epochs": "epochs", "minutes": "minutes", "gradients": "gradients"}


class TrainingForm(QWidget):
    """Data, model and further settings, each a part that folds away.

    Parameters
    ----------
    session
        Shown, and set.
    viewer
        Its labelled layers are offered.

    Attributes
    ----------
    ask_folder
        What asks for a folder, given the question; None if the user would rather not.
    ask_file
        The same for a file that lists cases.
    """

    remarked = Signal(str)
    """What is wrong with an entry that was just made; empty if nothing is."""
    ticked = Signal()
    """Other layers are to be trained on."""

    def __init__(
        self,
        session: TrainingSession,
        viewer: ViewerModel,
        ask_folder: Callable[[str], Path | None],
        ask_file: Callable[[str], Path | None],
    ) -> None:
        super().__init__()
        self.session, self.viewer, self.ask_folder, self.ask_file = session, viewer, ask_folder, ask_file
        self._filling = False
        self._fields: dict[str, Callable[[Any], None]] = {}
        self._forms: list[QFormLayout] = []
        self.data_part = Fold("Data", self._build_data())
        self.model_part = Fold("Model and defence", self._build_model())
        self.more_part = Fold("More settings", self._build_more(), opened=False)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        for part in self.parts:
            column.addWidget(part)
        self.browse.clicked.connect(lambda: self._choose("folder", "Data set: a folder with images/ and labels/"))
        self.browse_list.clicked.connect(self._choose_list)
        self.browse_place.clicked.connect(lambda: self._choose("library", "Folder that receives the model"))
        self.layers.itemChanged.connect(lambda _: self.ticked.emit() if not self._filling else None)
        for name in {*self._fields, "epochs", "minutes", "gradients"}:
            getattr(session.events, name).connect(self.mirror)
        self.offer_layers()
        self.refresh_models()
        self.mirror()

    @property
    def parts(self) -> tuple[Fold, ...]:
        """From above."""
        return self.data_part, self.model_part, self.more_part

    def _build_data(self) -> QWidget:
        inside, form = self._form()
        self.source = GroupedBox("Where the scans and their masks come from")
        self.source.offer(
            {"": [Choice("a folder or a list", "folder"), Choice("labelled layers of the viewer", "layers")]}, None
        )
        self._bind("source", self.source, self.source.chosen, self.source.show_value, lambda: self.source.value)
        form.addRow("From", self.source)
        self.folder = QLineEdit()
        self.folder.setPlaceholderText("folder with images/ and labels/")
        self.folder.setToolTip(
            "A folder with images/ and labels/ (files of the same names), or with the dataset.json of the Medical "
            "Segmentation Decathlon or nnU-Net; or a list of cases (CSV, TSV or JSONL)"
        )
        self._bind(
            "folder",
            self.folder,
            self.folder.editingFinished,
            lambda value: self.folder.setText("" if value is None else str(value)),
            lambda: Path(self.folder.text().strip()) if self.folder.text().strip() else None,
        )
        self.browse = browse_button("Choose the folder of the data")
        self.browse_list = browse_button("Choose a list of cases (CSV, TSV, JSONL or dataset.json)", "List…")
        self.folder_label = QLabel("Folder")
        form.addRow(self.folder_label, row(self.folder, self.browse, self.browse_list))
        self.layers = QListWidget()
        self.layers.setFixedHeight(76)
        outline_boxes(self.layers)
        self.layers.setToolTip("Images of the viewer that have a labels layer; those with a tick are trained on")
        self.layers.setAccessibleName("Labelled layers")
        self.layers_label = QLabel("Layers")
        form.addRow(self.layers_label, self.layers)
        self.facts = words()
        form.addRow(self.facts)
        return inside

    def _build_model(self) -> QWidget:
        inside, form = self._form()
        self.preset = GroupedBox("What the model is trained to withstand, and how")
        self.preset.offer(
            {
                heading: [
                    Choice(
                        _TITLES.get(name, name.replace("_at", " AT").replace("_", " ")),
                        name,
                        " ".join(filter(None, (NOTES[name].does, NOTES[name].source))),
                    )
                    for name in names
                ]
                for heading, names in _GROUPS.items()
            },
            self.session.preset,
        )
        self._bind("preset", self.preset, self.preset.chosen, self.preset.show_value, lambda: self.preset.value)
        form.addRow("Defence", self.preset)
        self.teacher = GroupedBox("The undefended model whose soft answers are learnt")
        self._bind("teacher", self.teacher, self.teacher.chosen, self.teacher.show_value, lambda: self.teacher.value)
        self.teacher_label = QLabel("Teacher")
        form.addRow(self.teacher_label, self.teacher)
        self.start_from = GroupedBox(
            "Weights to begin with. Starting a defence from an undefended model keeps more of its clean Dice"
        )
        self._bind(
            "start", self.start_from, self.start_from.chosen, self.start_from.show_value, lambda: self.start_from.value
        )
        form.addRow("Start from", self.start_from)
        self.architecture = GroupedBox("The network; its size follows from its defaults")
        self.architecture.offer(
            {"": [Choice(name.replace("_", " "), name) for name in ARCHITECTURES]}, self.session.architecture
        )
        self._bind(
            "architecture",
            self.architecture,
            self.architecture.chosen,
            self.architecture.show_value,
            lambda: self.architecture.value,
        )
        form.addRow("Network", self.architecture)
        self.level = real(
            0.1, 64, 1, " /255", "Largest change of any value that it is trained against, in 1/255 of the window"
        )
        self._bind_number("level", self.level)
        self.level_label = QLabel("ε")
        form.addRow(self.level_label, self.level)
        self.length = GroupedBox(
            "What limits the training; a gradient is one computation on one image, and within as many of them costly "
            "defences get fewer epochs"
        )
        self.length.offer({"": [Choice(title, unit) for unit, title in _UNITS.items()]}, self.session.length)
        self._bind("length", self.length, self.length.chosen, self.length.show_value, lambda: self.length.value)
        self.amount = whole(1, 10**9, "How long to train")
        self.amount.editingFinished.connect(self._on_amount)
        self.amount.valueChanged.connect(self._on_amount)
        self.length.setMinimumWidth(124)
        form.addRow("Length", row(self.amount, self.length))
        self.batch = whole(1, 4096, "Images a step; auto follows from the data")
        self.batch.setSpecialValueText(AUTO)
        self._bind_number("batch_size", self.batch, empty=1)
        self.patch = QLineEdit()
        self.patch.setPlaceholderText(AUTO)
        self.patch.setToolTip("Size of the training images in voxels, such as 64 × 64; auto follows from the data")
        self._bind("patch", self.patch, self.patch.editingFinished, self._show_patch, self._read_patch)
        form.addRow("Batch", self.batch)
        form.addRow("Patch", self.patch)
        self.title = QLineEdit()
        self.title.setToolTip("What the model is called; empty for a name made of data and defence")
        self._bind(
            "title", self.title, self.title.editingFinished, self.title.setText, lambda: self.title.text().strip()
        )
        form.addRow("Name", self.title)
        return inside

    def _build_more(self) -> QWidget:
        inside, form = self._form()
        self.ndim = GroupedBox(
            "Whether the model sees slices or volumes; auto takes volumes of eight slices or more as they are"
        )
        self.ndim.offer({"": [Choice(AUTO, None), Choice("slices (2-D)", 2), Choice("volumes (3-D)", 3)]}, None)
        self._bind("ndim", self.ndim, self.ndim.chosen, self.ndim.show_value, lambda: self.ndim.value)
        form.addRow("Sees", self.ndim)
        self.validation = real(1, 90, 0, " %", "Share of the patients that choose the best checkpoint")
        self._bind_number("validation", self.validation, factor=100)
        self.test = real(0, 90, 0, " %", "Share of the patients that no training sees")
        self._bind_number("test", self.test, factor=100)
        form.addRow("Validation", row(self.validation, QLabel("Test"), self.test))
        self.patients = QLineEdit()
        self.patients.setPlaceholderText(r"pattern, such as ^(scd_\d+)")
        self.patients.setToolTip(
            "Regular expression whose group is the patient's name in a case's, so that no patient is on two sides; "
            "without one each case is a patient"
        )
        self._bind(
            "patients",
            self.patients,
            self.patients.editingFinished,
            self.patients.setText,
            lambda: self.patients.text().strip(),
        )
        form.addRow("Patients", self.patients)
        self.steps = whole(1, 100, "Steps of the attack within the training: gradient computations an image")
        self._bind_number("steps", self.steps)
        self.steps_label = QLabel("Inner steps")
        form.addRow(self.steps_label, self.steps)
        self.rate = real(1e-6, 1, 6, "", "Learning rate at its largest")
        self.rate.setSingleStep(1e-3)
        self._bind_number("learning_rate", self.rate)
        form.addRow("Learning rate", self.rate)
        self.precision = GroupedBox("Of the passes of a step; fp16 needs a CUDA GPU")
        self.precision.offer({"": [Choice(p, p) for p in ("fp32", "bf16", "fp16")]}, "fp32")
        self._bind(
            "precision", self.precision, self.precision.chosen, self.precision.show_value, lambda: self.precision.value
        )
        form.addRow("Precision", self.precision)
        self.every = whole(1, 1000, "Epochs between two validations")
        self.every.setPrefix("every ")
        self.every.setSuffix(" epochs")
        self.every.setSpecialValueText("every epoch")
        self._bind_number("validate_every", self.every)
        form.addRow("Validate", self.every)
        self.patience = whole(0, 1000, "End after so many validations without a better model")
        self.patience.setSpecialValueText("off")
        self.patience.setSuffix(" validations")
        self._bind_number("patience", self.patience, empty=0)
        form.addRow("Patience", self.patience)
        self.saving = real(
            0, 3600, 1, " s", "Seconds between two saves within an epoch: a pause waits for one; auto costs little time"
        )
        self.saving.setPrefix("every ")
        self.saving.setSpecialValueText(AUTO)
        self._bind_number("save_every", self.saving, empty=0)
        form.addRow("Save", self.saving)
        self.seed = whole(0, 10**6, "Of everything random: the same seed gives the same model")
        self._bind_number("seed", self.seed)
        form.addRow("Seed", self.seed)
        self.place = QLineEdit()
        self.place.setToolTip("The library: the folder that receives the model, and its run below runs/")
        self._bind(
            "library",
            self.place,
            self.place.editingFinished,
            lambda value: self.place.setText(str(value)),
            lambda: Path(self.place.text().strip() or user_library()).expanduser(),
        )
        self.browse_place = browse_button("Choose the folder that receives the model")
        form.addRow("Library", row(self.place, self.browse_place))
        return inside

    def _form(self) -> tuple[QWidget, QFormLayout]:
        inside, form = empty_form()
        self._forms.append(form)
        return inside, form

    def align(self) -> None:
        """One column of labels throughout; how wide they are is known once the theme has its fonts."""
        align(self._forms)

    def _bind(
        self, name: str, widget: QWidget, changed: Any, show: Callable[[Any], None], value: Callable[[], Any]
    ) -> None:
        """Join a widget to a field of the session, both ways."""

        def mirror(now: Any) -> None:
            widget.blockSignals(True)
            show(now)
            widget.blockSignals(False)

        self._fields[name] = mirror
        changed.connect(lambda *_: self._take(name, value))
        mirror(getattr(self.session, name))

    def _bind_number(self, name: str, box: Any, *, empty: float | None = None, factor: float = 1) -> None:
        """Join a spin box; ``empty`` is the value that stands for None."""
        self._bind(
            name,
            box,
            box.valueChanged,
            lambda value: box.setValue(empty if value is None else type(box.value())(round(value * factor, 6))),
            lambda: None if box.value() == empty else box.value() / factor if factor != 1 else box.value(),
        )

    def _take(self, name: str, value: Callable[[], Any]) -> None:
        """Set a field to what a widget holds; a `ValueError` says what is wrong with that."""
        try:
            self._set(name, value())
        except ValueError as error:
            self.remarked.emit(str(error))

    def _set(self, name: str, value: Any) -> None:
        if self._filling:
            return
        remark = ""
        try:
            if name == "preset":
                self.session.choose_preset(value)
            elif getattr(self.session, name) != value:
                setattr(self.session, name, value)
        except ValidationError as error:
            remark = f"{error.errors()[0]['msg'].removeprefix('Value error, ').rstrip('.')}."
            self.mirror()
        self.remarked.emit(remark)

    def mirror(self) -> None:
        """Show the session's choices, whoever made them."""
        s = self.session
        self._filling = True
        for name, show in self._fields.items():
            show(getattr(s, name))
        self.amount.blockSignals(True)
        self.amount.setValue(round(getattr(s, s.length)))
        self.amount.blockSignals(False)
        self._filling = False
        for widget in (self.folder_label, self.folder, self.browse, self.browse_list):
            widget.setVisible(s.source == "folder")
        for widget in (self.layers_label, self.layers):
            widget.setVisible(s.source == "layers")
        for widget in (self.teacher_label, self.teacher):
            widget.setVisible(s.preset == "distillation")
        attacks = s.attacks
        for widget in (self.level_label, self.level, self.steps_label, self.steps):
            widget.setVisible(attacks)
        self.architecture.setEnabled(s.start is None)
        if s.start is not None:
            with suppress(CeaseError):  # an unreadable card is told of by the check
                self.architecture.show_value(load_card(s.start).architecture)
        self.data_part.tell("layers" if s.source == "layers" else "" if s.folder is None else s.folder.name)
        self.model_part.tell(self.preset.currentText().strip())

    def refresh_models(self) -> None:
        """Offer the models of the library as they are now."""
        cards = {folder: card.title for folder, card in available_models().items()}
        for now in (self.session.start, self.session.teacher):
            if now is not None and now not in cards:
                cards[now] = now.name
        models = [Choice(title, folder, str(folder)) for folder, title in cards.items()]
        self.start_from.offer({"": [Choice(RANDOM, None)], "Models": models}, self.session.start)
        self.teacher.offer({"": [Choice("none", None)], "Models": models}, self.session.teacher)

    def _choose(self, name: str, question: str) -> None:
        folder = self.ask_folder(question)
        if folder is not None:
            self._set(name, folder)

    def _choose_list(self) -> None:
        file = self.ask_file("Data set: a list of cases")
        if file is not None:
            self._set("folder", file)

    def _on_amount(self) -> None:
        if not self._filling:
            self._set(self.session.length, self.amount.value())

    def _show_patch(self, patch: tuple[int, ...] | None) -> None:
        self.patch.setText("" if patch is None else " × ".join(map(str, patch)))

    def _read_patch(self) -> tuple[int, ...] | None:
        sizes = self.patch.text().replace("×", " ").replace("x", " ").replace(",", " ").split()
        if not sizes or sizes == [AUTO]:
            return None
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            raise ValueError("A patch is a size in voxels for each axis, such as 64 × 64.")
        return tuple(map(int, sizes))

    def offer_layers(self) -> None:
        """List the labelled images of the viewer; ticks stay."""
        off = {item.data(Qt.ItemDataRole.UserRole)[0] for item in self._items() if not _ticked(item)}
        self._filling = True
        self.layers.clear()
        for image, mask in labelled(self.viewer):
            item = QListWidgetItem(f"{image.name}  +  {mask.name}")
            item.setData(Qt.ItemDataRole.UserRole, (image, mask))
            item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsSelectable)
            item.setCheckState(Qt.CheckState.Unchecked if image in off else Qt.CheckState.Checked)
            item.setToolTip(tip_of(item.text()))
            self.layers.addItem(item)
        self._filling = False

    def _items(self) -> list[QListWidgetItem]:
        return [self.layers.item(i) for i in range(self.layers.count())]

    def pairs(self) -> list[Pair]:
        """The ticked layers as they are now."""
        chosen: list[tuple[Image, Labels]] = [
            item.data(Qt.ItemDataRole.UserRole) for item in self._items() if _ticked(item)
        ]
        return [pair_of(image, mask) for image, mask in chosen]

    def show_facts(self, warnings: tuple[str, ...], config: TrainingConfig | None) -> None:
        """What to know about the data, and what is taken where nothing was chosen."""
        self.facts.setText(" ".join(warnings))
        self.facts.setVisible(bool(warnings))
        if config is None:
            return
        self.title.setPlaceholderText(config.name)
        self.patch.setPlaceholderText(f"{AUTO}: {' × '.join(map(str, config.patch))}")
        self.batch.setSpecialValueText(f"{AUTO}: {config.batch_size}" if self.session.batch_size is None else AUTO)


def _ticked(item: QListWidgetItem) -> bool:
    return bool(item.checkState() == Qt.CheckState.Checked)
