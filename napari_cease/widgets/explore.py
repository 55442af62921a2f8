"""The attack explorer's dock: choose, drag ε, watch.

This module keeps its annotations as objects, since napari looks at them to hand over the viewer.
"""

from itertools import zip_longest
from pathlib import Path
from typing import Any

import napari
from magicgui.widgets import ComboBox, SpinBox
from napari.layers import Image, Labels, Layer, Shapes
from napari.utils.notifications import show_error, show_info
from napari.utils.theme import get_theme
from pydantic import ValidationError
from qtpy.QtCore import QEvent, QObject, Qt
from qtpy.QtGui import QFont, QIcon
from qtpy.QtWidgets import (
    QCheckBox,
    QFormLayout,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible, QLabeledDoubleSlider

from cease_core.attacks import ATTACKS
from cease_core.attacks.targets import TARGETS
from cease_core.errors import CeaseError
from cease_core.models import ModelCard, available_models
from cease_core.models.checkpoint import load_card
from napari_cease import findings
from napari_cease.choices import editors, explained, offered, target_title
from napari_cease.explorer import Explorer, takes
from napari_cease.jobs.exploration import SIDES, Side
from napari_cease.layers import is_mask, role_of
from napari_cease.recovery import SessionKeeper
from napari_cease.results import Results
from napari_cease.session import ExplorerSession
from napari_cease.settings import on_change, place_library, preferences
from napari_cease.units import epsilon_text
from napari_cease.widgets.curve import CurvePanel
from napari_cease.widgets.feature_view import FeatureView
from napari_cease.widgets.grouped_box import Choice, GroupedBox
from napari_cease.widgets.history import HistoryPanel
from napari_cease.widgets.keys import STEP_TIP, TOGGLE_TIP, CanvasKeys, pressed
from napari_cease.widgets.parameters import ParameterRows, modest
from napari_cease.widgets.playback import PlayButton
from napari_cease.widgets.readout import Readout
from napari_cease.widgets.restore_bar import RestoreBar
from napari_cease.widgets.saving import SaveButton
from napari_cease.widgets.scan_view import ScanView
from napari_cease.widgets.window import end_if_removed, main_window

OWN_MASK = "the model's own clean mask"
NO_MODEL = "none"
LEAVE = "leave the mask (untargeted)"
EVERYWHERE = "everywhere"
GOAL_TITLE = "More: target and region"
_KEEP: Any = object()


class AttackExplorer(QScrollArea):
    """Drag ε and watch two models segment the same attacked scan.

    Parameters
    ----------
    napari_viewer
        Given by napari.
    """

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__()
        self.viewer = napari_viewer
        place_library()
        preferred = preferences()
        steps = {"steps": preferred.steps} if preferred.steps else {}
        self.session = ExplorerSession(top=preferred.epsilon_up_to, parameters=steps)
        self.explorer = Explorer(napari_viewer, self.session, self)
        self.keeper = SessionKeeper(napari_viewer, self.explorer, self)
        self._closed = False
        self._filling = False
        self._fitting: dict[Path, ModelCard] = {}
        self._several = False
        self._drawn: Results | None = None
        self._drawn_revision = 0
        self._build()
        self._connect()
        self._keys = CanvasKeys(napari_viewer, self.session)
        self._on_scan()
        self._on_theme()
        self.keeper.look()

    # --- what it is made of ---------------------------------------------------------------------------------

    def _build(self) -> None:
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        # A click beside the fields takes the focus out of them, so that the keys are the explorer's.
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setMinimumWidth(372)
        body = QWidget()
        self.setWidget(body)
        column = QVBoxLayout(body)
        column.setContentsMargins(5, 6, 5, 6)
        column.setSpacing(7)
        column.addWidget(RestoreBar(self.keeper))

        self.scan = _combo("The image layer that is attacked", lambda _: self._scan_choices())
        self.labels = _combo(
            "The mask that both models are judged by; without one, each model's own clean mask",
            lambda _: self._labels_choices(),
            OWN_MASK,
        )
        self.models: dict[Side, ComboBox] = {
            "undefended": _combo("A model trained as usual", lambda _: self._model_choices(), NO_MODEL),
            "defended": _combo(
                "A model trained to hold, attacked in its own right at the same ε",
                lambda _: self._model_choices(),
                NO_MODEL,
            ),
        }
        self.attack = GroupedBox("How the perturbation is searched")
        self.top = SpinBox(value=self.session.top, min=1, max=64, tooltip="Right end of the ε slider, in 1/255")
        modest(self.top.native)
        self.parameters = ParameterRows(("ε up to", self.top.native))
        self.target = GroupedBox(
            "Whether any other mask will do, or one is to be reached; a labels layer of the viewer can be that mask"
        )
        self.region = GroupedBox("Where the scan may change: a labels layer, or shapes drawn on the scan")
        form = QFormLayout()
        form.setSpacing(4)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow("Scan", self.scan.native)
        self.scan_view = ScanView(self.explorer, form)
        form.addRow("Reference", self.labels.native)
        form.addRow("Undefended", self.models["undefended"].native)
        form.addRow("Defended", self.models["defended"].native)
        form.addRow(_rule())
        form.addRow("Attack", self.attack)
        attack = QVBoxLayout()
        attack.setSpacing(4)
        attack.addLayout(form)
        attack.addWidget(self.parameters)
        column.addLayout(attack)
        column.addWidget(self._build_goal())
        self._row_labels = [form.itemAt(i, QFormLayout.ItemRole.LabelRole) for i in range(form.rowCount())]
        column.addWidget(_rule())

        self.epsilon_text = QLabel("ε = 0")
        font = QFont(self.epsilon_text.font())
        font.setPointSizeF(font.pointSizeF() * 1.25)
        font.setBold(True)
        self.epsilon_text.setFont(font)
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, self.session.top)
        self.slider.setPageStep(1)
        self.slider.setTickPosition(QSlider.TickPosition.TicksBelow)
        self.slider.setTickInterval(1)
        self.slider.setToolTip(f"Strength of the attack. {STEP_TIP}. {TOGGLE_TIP}")
        self.epsilon_text.setToolTip(TOGGLE_TIP)
        self.play = PlayButton(self.explorer)
        column.addWidget(self.epsilon_text)
        strength = QHBoxLayout()
        strength.setSpacing(2)
        strength.addWidget(self.slider, 1)
        strength.addWidget(self.play)
        column.addLayout(strength)

        self.note = QLabel()
        self.note.setWordWrap(True)
        column.addWidget(self.note)
        self.readout = Readout()
        self.figures, self.target_row = self.readout.figures, self.readout.target_row
        column.addWidget(self.readout)
        self.curves = CurvePanel()
        self.curve = self.curves.curve
        self.curve.set_top(self.session.top)
        self.save = SaveButton(self.explorer, lambda: self.curves.split, self._picture)
        self.curves.row.addStretch()
        self.curves.row.addWidget(self.save)
        column.addWidget(self.curves)
        self.features = FeatureView(self.explorer)
        column.addWidget(self.features)

        self.perturbation = QCheckBox("Perturbation map")
        self.perturbation.setToolTip("Blue darkens the scan, red brightens it; transparent where nothing changes")
        self.perturbation.setChecked(self.session.show_perturbation)
        self.gain = QLabeledDoubleSlider(Qt.Orientation.Horizontal)
        self.gain.setRange(0.25, 8)
        self.gain.setValue(self.session.gain)
        self.gain.setDecimals(1)
        self.gain.setToolTip("Contrast of the perturbation map")
        self.adversarial = QCheckBox("Adversarial scan")
        self.adversarial.setToolTip("Show the attacked intensities instead of the clean ones")
        self.split = QCheckBox("Side by side")
        self.split.setToolTip("Undefended left, defended right; otherwise both masks lie over one scan")
        self.split.setChecked(self.session.side_by_side)
        self.critical = QCheckBox("Critical ε map")
        self.critical.setToolTip(
            "For each voxel the smallest ε, in 1/255, at which the attack changes its class; bright is fragile, "
            "and what never changes is transparent"
        )
        self.critical.setChecked(self.session.show_critical)
        shown = QGridLayout()
        shown.setSpacing(4)
        shown.addWidget(self.perturbation, 0, 0)
        gain = QHBoxLayout()
        gain.addWidget(QLabel("gain"))
        gain.addWidget(self.gain)
        shown.addLayout(gain, 0, 1)
        shown.addWidget(self.adversarial, 1, 0)
        shown.addWidget(self.split, 1, 1)
        shown.addWidget(self.critical, 2, 0, 1, 2)
        shown.setColumnStretch(1, 1)
        column.addLayout(shown)

        self.whole = QPushButton("Attack the whole volume")
        self.whole.setToolTip("All slices at the present ε, with the full number of steps")
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("Stop and keep the strongest perturbation found so far")
        self.progress = QProgressBar()
        self.progress.setTextVisible(True)
        column.addWidget(self.whole)
        running = QHBoxLayout()
        running.addWidget(self.progress, 1)
        running.addWidget(self.cancel)
        column.addLayout(running)
        self.history = HistoryPanel(self.explorer)
        column.addWidget(self.history)
        column.addStretch(1)
        self.cancel.setEnabled(False)
        self._idle()

    def _build_goal(self) -> QCollapsible:
        """Rare choices, folded away; the title says what is chosen."""
        inside = QWidget()
        form = QFormLayout(inside)
        form.setContentsMargins(0, 0, 0, 0)
        form.setSpacing(4)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self._goal_labels = [QLabel("Target"), QLabel("Region")]
        for label, box in zip(self._goal_labels, (self.target, self.region), strict=True):
            form.addRow(label, box)
        self.goal = QCollapsible(expandedIcon=QIcon(), collapsedIcon=QIcon())
        self.goal.setDuration(0)
        # napari colours a button that is down, as if there were something to mind.
        self.goal.toggleButton().setStyleSheet(
            "text-align: left; border: none; outline: none; background: transparent; padding: 2px 0;"
        )
        self.goal.layout().setContentsMargins(0, 0, 0, 0)
        self.goal.content().layout().setContentsMargins(0, 0, 0, 0)
        self.goal.addWidget(inside)
        self.goal.toggled.connect(self._on_goal)
        return self.goal

    def _align(self) -> None:
        """One column of labels throughout; how wide they are is known once the theme has its fonts."""
        width = max(item.widget().sizeHint().width() for item in self._row_labels if item is not None and item.widget())
        self.parameters.align(width)
        for label in self._goal_labels:
            label.setMinimumWidth(width)

    # --- wiring ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        s = self.session
        self.scan.changed.connect(self._on_scan)
        self.labels.changed.connect(self._on_chosen)
        for side, box in self.models.items():
            box.changed.connect(lambda folder, side=side: self._set(side, folder))
        self.attack.chosen.connect(self.explorer.choose_attack)
        self.parameters.edited.connect(self._on_edited)
        self.target.chosen.connect(self._on_target)
        self.region.chosen.connect(self._on_region)
        self.top.changed.connect(lambda value: self._set("top", value))
        self.slider.valueChanged.connect(lambda value: self._set("level", value))
        self.curve.level_clicked.connect(self.slider.setValue)
        self.perturbation.toggled.connect(lambda on: self._set("show_perturbation", on))
        self.adversarial.toggled.connect(lambda on: self._set("show_adversarial", on))
        self.critical.toggled.connect(lambda on: self._set("show_critical", on))
        self.split.toggled.connect(lambda on: self._set("side_by_side", on))
        self.gain.valueChanged.connect(lambda value: self._set("gain", float(value)))
        self.whole.clicked.connect(self._attack_volume)
        self.cancel.clicked.connect(self._on_cancel)
        self.curves.split_changed.connect(self._draw_curves)
        self.save.recorder.progressed.connect(lambda done, total: self._on_progress(done, total, "frame"))
        self.save.recorder.busy.connect(self._on_busy)
        for name in ("attack", "parameters", "target", "region", "undefended", "defended", "top"):
            getattr(s.events, name).connect(self._mirror)
        s.events.level.connect(self._on_level)
        s.events.top.connect(self._on_top)
        s.events.scan.connect(self._on_level)
        e = self.explorer
        e.refreshed.connect(self._on_refreshed)
        e.progressed.connect(self._on_progress)
        e.failed.connect(self._on_failed)
        e.busy.connect(self._on_busy)
        e.restored.connect(self._on_restored)
        self.keeper.failed.connect(show_error)
        on_change(self._on_preferences)
        layers = self.viewer.layers.events
        for event in (layers.inserted, layers.removed, layers.reordered):
            event.connect(self._on_layers)
        layers.renamed.connect(self._on_renamed)
        self.viewer.events.theme.connect(self._on_theme)
        # napari neither closes nor destroys a removed dock at once: the window's own events are watched too.
        main_window(self.viewer).installEventFilter(self)
        for worker in (self.explorer.worker, self.keeper.worker):
            worker.end_with(self)

    def _mirror(self) -> None:
        """Show the session's attack, whoever set it, and what could be chosen instead."""
        s = self.session
        self._filling = True
        self.top.value = s.top
        self._filling = False
        self._several = findings.several_classes(self.explorer)
        self._drawn = None
        groups = offered(targeted=s.target is not None, twins=self.explorer.twins)
        self.attack.offer(
            {title: [Choice(ATTACKS[k].about.title, k, explained(k)) for k in keys] for title, keys in groups.items()},
            s.attack,
        )
        shown = editors(s.attack)
        self.parameters.show_editors(shown, {e.name: getattr(s.rule, e.name) for e in shown})
        self._offer_goals()

    def _offer_goals(self) -> None:
        s, e = self.session, self.explorer
        masks = [Choice(f"own mask: {name}", layer) for name, layer in self._labels_choices()]
        ready = [Choice(target_title(key), key) for key in TARGETS]
        self.target.offer(
            {"": [Choice(LEAVE, None)], "Reach a mask": [*ready, *masks]},
            s.target if e.target_layer is None else e.target_layer,
        )
        self.region.offer(
            {"": [Choice(EVERYWHERE, None), *(Choice(x.name, x) for x in self._region_choices())]}, e.region_layer
        )
        chosen = [self.target.currentText().strip()] if self.target.value is not None else []
        chosen += [f"in {self.region.currentText().strip()}"] if self.region.value is not None else []
        self._goal_title = " · ".join(chosen) or GOAL_TITLE
        self._on_goal()
        self.readout.show_target(s.target is not None)

    def _on_target(self, target: str | Labels | None) -> None:
        self.explorer.choose_target(target)
        self._offer_goals()

    def _on_region(self, layer: Labels | Shapes | None) -> None:
        self.explorer.choose_region(layer)
        self._offer_goals()

    def _on_goal(self, _: Any = None) -> None:
        # As text, which follows the theme; the collapsible's own arrows keep the colour that they were made in.
        self.goal.setText(f"{'▾' if self.goal.isExpanded() else '▸'}  {self._goal_title}")

    def _on_edited(self, name: str, value: Any) -> None:
        try:
            self.session.tune(**{name: value})
        except ValidationError as error:
            self.explorer.remark("attack", error.errors()[0]["msg"].removeprefix("Value error, "))
            self._mirror()
        else:
            self.explorer.remark("attack", "")

    def _set(self, name: str, value: Any) -> None:
        if not self._filling:
            setattr(self.session, name, value)

    # --- the choices ----------------------------------------------------------------------------------------

    def _on_layers(self, event: Any = None) -> None:
        layer = getattr(event, "value", None)
        if layer is not None and role_of(layer)[0] not in (None, "scan", "labels"):
            return
        if layer is not None and "contour" in layer.metadata.get("cease", {}):
            # A reference that our samples made: a layer's constructor takes no contour.
            layer.contour = layer.metadata["cease"]["contour"]
        self._refill()
        if event.type == "inserted" and self.labels.value is None and layer is self._labels_of(self.scan.value):
            self.labels.value = layer

    def _on_renamed(self, event: Any) -> None:
        if role_of(self.viewer.layers[event.index])[0] in (None, "scan", "labels"):
            self._offer_layers()
            self._offer_goals()

    def _scan_choices(self) -> list[tuple[str, Image]]:
        layers = self.viewer.layers
        return [(x.name, x) for x in layers if isinstance(x, Image) and role_of(x)[0] in (None, "scan")]

    def _labels_choices(self) -> list[tuple[str, Labels]]:
        return [(x.name, x) for x in self.viewer.layers if isinstance(x, Labels) and is_mask(x)]

    def _region_choices(self) -> list[Layer]:
        return [x for x in self.viewer.layers if isinstance(x, (Labels, Shapes)) and is_mask(x)]

    def _model_choices(self) -> list[tuple[str, Path]]:
        return [(card.title, folder) for folder, card in self._fitting.items()]

    def _offer_layers(self, *chosen: Image | Labels | None) -> None:
        """Offer the viewer's layers; choose the given scan and reference, or keep what is chosen."""
        self._filling = True
        for box, layer in zip_longest((self.scan, self.labels), chosen, fillvalue=_KEEP):
            box.reset_choices()
            if layer is not _KEEP and layer in box.choices:
                box.value = layer
        self._filling = False

    def _labels_of(self, scan: Image | None) -> Labels | None:
        """The reference that came with a scan; else the present one, if it has the scan's shape."""
        mark = scan.metadata.get("cease", {}).get("scan") if scan is not None else None
        for _, layer in self._labels_choices():
            if mark is not None and layer.metadata.get("cease", {}).get("scan") is mark:
                return layer
        now: Labels | None = self.labels.value
        if scan is None or now is None or now.data.shape != scan.data.shape[: scan.ndim]:
            return None
        return now

    def _refill(self) -> None:
        """After layers came or went: take the first scan that appears, let go of what has left."""
        scan, mask = self.scan.value, self.labels.value
        self._offer_layers()
        if self.scan.value is not scan:
            self._on_scan()
        elif self.labels.value is not mask:
            self._on_chosen()
        # What is no longer there can be neither region nor target.
        e = self.explorer
        if e.region_layer is not None and e.region_layer not in self.viewer.layers:
            e.choose_region(None)
        if e.target_layer is not None and e.target_layer not in self.viewer.layers:
            e.choose_target(None)
        self._offer_goals()

    def _on_scan(self, _: Any = None) -> None:
        if not self._filling:
            self._filling = True
            self.labels.value = self._labels_of(self.scan.value)
            self._filling = False
            self._apply(None)

    def _on_chosen(self, _: Any = None) -> None:
        if not self._filling:
            self._apply(None)

    def _apply(self, models: dict[Side, Path | None] | None) -> None:
        try:
            self.explorer.choose(self.scan.value, self.labels.value, models)
        except CeaseError as error:
            show_error(str(error))
            if self.explorer.scan_layer not in self.viewer.layers:
                self.explorer.choose(None, None)
            self._offer_layers(self.explorer.scan_layer, self.explorer.labels_layer)
        self.offer_models()
        self._on_busy(False)
        self._on_refreshed()

    def offer_models(self) -> None:
        """Offer the models that take such a scan; keep what is chosen where it still fits."""
        scan = self.session.scan
        fitting: dict[Path, ModelCard] = {}
        if scan is not None:
            for folder, card in available_models().items():
                if takes(card, scan):
                    fitting[folder] = card
        for side in SIDES:
            now = getattr(self.session, side)
            if now is not None and now not in fitting and now.is_dir():
                fitting[now] = load_card(now)
        self._fitting = fitting
        self._filling = True
        for side, box in self.models.items():
            box.reset_choices()
            now = getattr(self.session, side)
            box.value = now if now in fitting else None
        self._filling = False
        self._mirror()

    def choose(
        self, scan: Image, labels: Labels | None = None, undefended: Path | None = None, defended: Path | None = None
    ) -> None:
        """Open a scan with models; what a user would do by hand in the four boxes."""
        self._offer_layers(scan, labels)
        self._apply({"undefended": undefended, "defended": defended})

    # --- what is shown --------------------------------------------------------------------------------------

    def _on_level(self) -> None:
        s = self.session
        if self.slider.value() != s.level:
            self.slider.setValue(s.level)
        self.curve.cursor_line.setValue(s.level)
        opened = next(iter(self.explorer.results.opened.values()), None)
        width = None if opened is None else opened.window.width
        unit, first = s.scan.unit if s.scan is not None else "", preferences().epsilon_unit == "intensity"
        self.epsilon_text.setText(epsilon_text(s.level, width, unit, intensity_first=first))

    def _on_top(self, top: int) -> None:
        self.slider.setRange(0, top)
        self.curve.set_top(top)
        if self.session.level > top:
            self.session.level = top

    def _on_refreshed(self) -> None:
        self._on_level()
        scan = self.session.scan
        preview = False
        for side in SIDES:
            view, opened = self.explorer.view(side), self.explorer.opened(side)
            preview |= view is not None and view.preview
            self.readout.show_figures(side, view, opened, scan)
        self.note.setText(self._note(preview))
        # Most ticks of the slider teach nothing new.
        results = self.explorer.results
        if results is not self._drawn or results.revision != self._drawn_revision:
            self._draw_curves()

    def _draw_curves(self) -> None:
        results = self.explorer.results
        self._drawn, self._drawn_revision = results, results.revision
        self.curves.offer_classes(self._several)
        for side in SIDES:
            self.curve.show_points(side, *results.curve(side))
        self.curves.show_classes(findings.class_curves(self.explorer) if self.curves.split else [])

    def _note(self, preview: bool) -> str:
        scan, s = self.session.scan, self.session
        if scan is None:
            return "Open a scan (File › Open File, or File › Open Sample › napari-cease) and choose it above."
        if s.undefended is None and s.defended is None:
            return "Choose a model: its mask appears over the scan."
        parts = []
        part = next(iter(self.explorer.results.opened.values()), None)
        whole = any(
            (v := self.explorer.view(side)) is not None and v.mask.ndim == 3 and v.mask.shape == scan.shape
            for side in SIDES
        )
        if scan.ndim == 3 and part is not None:
            if whole:
                parts.append("Whole volume under attack.")
            elif isinstance(part.place[0], int):
                parts.append(f"Slice {part.place[0]} of {scan.shape[0]} under attack.")
            else:
                parts.append(f"Slices {part.place[0].start} to {part.place[0].stop - 1} under attack.")
        if part is not None and part.reference == "clean mask":
            parts.append("No reference: Dice is the agreement with each model's own clean mask.")
        missed = [side for side, opened in self.explorer.results.opened.items() if not opened.reached]
        if missed and s.region is not None:
            parts.append(f"{s.region.name} marks nothing here, so nothing changes; go to a slice that it covers.")
        if preview:
            parts.append("<b>Preview</b>: the full attack at this ε is on its way.")
        return " ".join([*parts, *self.explorer.remarks.values()])

    def _on_progress(self, done: int, total: int, what: str = "step") -> None:
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        self.progress.setFormat(f"{what} %v of %m")

    def _on_restored(self) -> None:
        self._offer_layers(self.explorer.scan_layer, self.explorer.labels_layer)
        self.offer_models()
        self._idle()
        self._on_busy(False)
        self._on_refreshed()

    def _on_cancel(self) -> None:
        self.save.recorder.cancel()
        self.explorer.cancel()

    def _picture(self) -> Any:
        return self.viewer.screenshot(canvas_only=True, flash=False)

    def _on_busy(self, busy: bool) -> None:
        busy = busy or self.save.recorder.running or self.explorer.running
        self.cancel.setEnabled(busy)
        if busy:
            self.progress.setRange(0, 0)
            self.progress.setFormat("loading the models")
        else:
            self._idle()

    def _idle(self) -> None:
        self.progress.setRange(0, 1)
        self.progress.setValue(0)
        self.progress.setFormat("idle")
        scan = self.session.scan
        self.whole.setEnabled(scan is not None and scan.ndim == 3)
        self.whole.setVisible(scan is None or scan.ndim == 3)

    def _on_failed(self, sentence: str) -> None:
        show_error(sentence)
        self._on_busy(False)

    def _attack_volume(self) -> None:
        if self.session.level == 0:
            show_info("At ε = 0 there is nothing to attack; move the slider to the right first.")
            return
        self.explorer.attack_volume()

    def _on_preferences(self, _: Any = None) -> None:
        place_library()
        self.offer_models()
        self._on_level()
        self.explorer.draw()

    def _on_theme(self, _: Any = None) -> None:
        theme = get_theme(self.viewer.theme)
        self.curve.set_colours(theme.text.as_hex(), theme.background.as_hex())
        self.features.set_colours(theme.text.as_hex(), theme.background.as_hex())

    # --- the end --------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Stop the work and take our layers away; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        on_change(self._on_preferences, follow=False)
        self.keeper.close()
        self.play.stop()
        self.scan_view.shutdown()
        self.save.recorder.close()
        self.history.close_history()
        self.features.shutdown()
        self._keys.release()
        main_window(self.viewer).removeEventFilter(self)
        for event in (
            self.viewer.layers.events.inserted,
            self.viewer.layers.events.removed,
            self.viewer.layers.events.reordered,
        ):
            event.disconnect(self._on_layers)
        self.viewer.layers.events.renamed.disconnect(self._on_renamed)
        self.viewer.events.theme.disconnect(self._on_theme)
        self.explorer.close()

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Watch the main window for its end."""
        if event is not None and event.type() == QEvent.Type.Close:
            self.save.recorder.close()
            self.explorer.worker.cancel()
            self.scan_view.rest()
            self.features.rest()
        return bool(super().eventFilter(watched, event))

    def event(self, event: QEvent | None) -> bool:
        """A dock that loses its parent has been removed."""
        end_if_removed(self, event)
        return bool(super().event(event))

    def keyPressEvent(self, event: Any) -> None:
        """Keys that no field or button has used."""
        if not pressed(event, self.session) and not self.history.pressed(event):
            super().keyPressEvent(event)

    def showEvent(self, event: Any) -> None:
        """Shown, the dock has its theme."""
        super().showEvent(event)
        self._align()

    def closeEvent(self, event: Any) -> None:
        """Closed as a window of its own."""
        self.shutdown()
        super().closeEvent(event)


def _combo(tooltip: str, choices: Any, nothing: str = "") -> ComboBox:
    # Choices belong to the constructor: magicgui asks for them again whenever the box gets another parent.
    # It tells of a change to "nothing" only where that is its own null choice.
    box = ComboBox(tooltip=tooltip, choices=choices, nullable=bool(nothing))
    box.null_string = nothing
    box.reset_choices()
    box.native.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    box.native.setMinimumWidth(120)
    return box


def _rule() -> QFrame:
    line = QFrame()
    line.setFrameShape(QFrame.Shape.HLine)
    line.setFixedHeight(1)
    line.setStyleSheet("background: palette(mid)")
    return line
