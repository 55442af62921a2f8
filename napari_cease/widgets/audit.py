"""The audit dock: choose models, data and a tier, start, watch; the audit goes on without the window.

This module keeps its annotations as objects, since napari looks at them to hand over the viewer.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import napari
from napari.utils import progress
from napari.utils.notifications import show_error, show_info
from qtpy.QtCore import Qt, QUrl, Signal
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QLabel,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QProgressBar,
    QPushButton,
    QRadioButton,
    QSpinBox,
    QWidget,
)

from cease_core.errors import CeaseError
from cease_core.evaluation.audit import tier
from cease_core.evaluation.audit.plan import Tier
from cease_core.evaluation.summary import Curve
from cease_core.models import ModelCard, available_models
from napari_cease.audit_session import AuditSession, Row, audits_place, explained, why_not
from napari_cease.auditor import Auditor
from napari_cease.jobs.auditing import REPORT, find_audits
from napari_cease.units import LEVELS
from napari_cease.widgets.audit_results import Band, ChecksView, VerdictView, WorstCurves
from napari_cease.widgets.audit_table import AuditTable, AuditView
from napari_cease.widgets.fold import Fold
from napari_cease.widgets.grouped_box import Choice, GroupedBox
from napari_cease.widgets.parts import (
    align,
    browse_button,
    button_row,
    empty_column,
    empty_form,
    entry_of,
    escape,
    outline_boxes,
    real,
    row,
    rule,
    tip_of,
    whole,
    words,
)
from napari_cease.widgets.run_dock import RunDock

TIERS: tuple[Tier, ...] = get_args(Tier)
ALL = "all"
WHOLE = "whole volume"
OFF = "off"
RECENT = 15
"""Audits that the menu offers."""


class AuditDock(RunDock):
    """Find out how robust models are, and whether the figures can be trusted, in a process of its own.

    Parameters
    ----------
    napari_viewer
        Given by napari.

    Attributes
    ----------
    open_url
        What opens the report, given its `QUrl`; the desktop's browser by default.
    """

    case_chosen = Signal(object)
    """The user wants to look at a row of the table: `napari_cease.audit_session.ChosenCase`."""
    audited = Signal(object)
    """An audit has finished; its folder."""

    def __init__(self, napari_viewer: "napari.viewer.Viewer") -> None:
        super().__init__(napari_viewer)
        self.session = AuditSession()
        self.auditor = Auditor(self.session, self)
        self.open_url: Callable[[QUrl], Any] = QDesktopServices.openUrl
        self._cards: dict[Path, ModelCard] = {}
        self._progress: Any = None
        self._folded = False
        self._filling = False
        self._summary: Any = None
        self._build()
        self._connect()
        self.offer_models()
        self._mirror()
        self.watch()
        self._on_looked()
        self._on_refreshed()
        self.auditor.open_alive()

    # --- what it is made of ---------------------------------------------------------------------------------

    def _build(self) -> None:
        column = self.column
        self.models_part = Fold("Models", self._build_models())
        self.data_part = Fold("Data", self._build_data())
        self.tier_part = Fold("Tier", self._build_tier())
        self.more_part = Fold("More settings", self._build_more(), opened=False)
        self.parts = (self.models_part, self.data_part, self.tier_part, self.more_part)
        for part in self.parts:
            column.addWidget(part)
        column.addWidget(rule())
        self._build_run()
        self.curves = WorstCurves()
        self.curves_part = Fold("Dice over ε", self.curves)
        self.verdict, self.checks = VerdictView(), ChecksView()
        self.verdict_part = Fold("Verdict", self.verdict)
        self.rows_part = Fold("Results", self._build_rows())
        self.checks_part = Fold("Checks", self.checks)
        for part in (self.verdict_part, self.curves_part, self.rows_part, self.checks_part):
            column.addWidget(part)
        column.addStretch(1)

    def _build_models(self) -> QWidget:
        inside, column = empty_column()
        self.models = QListWidget()
        self.models.setToolTip("Models with a tick are audited, and compared if there are several")
        self.models.setAccessibleName("Models to audit")
        self.models.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.models.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.models.setFixedHeight(132)
        outline_boxes(self.models)
        column.addWidget(self.models)
        self.models_note = words()
        column.addWidget(self.models_note)
        return inside

    def _build_data(self) -> QWidget:
        inside, column = empty_column()
        self.data = QLineEdit()
        self.data.setPlaceholderText("folder with images/ and labels/")
        self.data.setToolTip(
            "A folder with images/ and labels/ (files of the same names), or with the dataset.json of the Medical "
            "Segmentation Decathlon or nnU-Net; or a list of cases (CSV, TSV or JSONL)"
        )
        self.data.setAccessibleName("Data folder")
        self.browse = browse_button("Choose the data folder")
        self.browse_list = browse_button("Choose a list of cases (CSV, TSV, JSONL or dataset.json)", "List…")
        column.addLayout(row(self.data, self.browse, self.browse_list))
        self.facts = words(rich=True)
        column.addWidget(self.facts)
        self.keep_seen = QCheckBox("Keep cases seen in training")
        self.keep_seen.setToolTip(
            "By default cases that a model was trained on, or its checkpoint chosen by, are left out: on them any "
            "model looks better than it is"
        )
        column.addWidget(self.keep_seen)
        return inside

    def _build_tier(self) -> QWidget:
        inside, column = empty_column()
        self.tiers: dict[Tier, QRadioButton] = {}
        group = QButtonGroup(inside)
        for name in TIERS:
            button = QRadioButton(name)
            button.setToolTip(explained(tier(name)))
            group.addButton(button)
            self.tiers[name] = button
            column.addWidget(button)
            note = words(explained(tier(name)))
            note.setIndent(22)
            column.addWidget(note)
        return inside

    def _build_more(self) -> QWidget:
        inside, form = empty_form()
        self._form = form
        self.fields: dict[str, Any] = {}
        whole = self._whole
        cases = whole("cases", 0, "Cases at most, chosen by a hash of the patient's name; 0 for all", special=ALL)
        slices = whole(
            "slices", 0, "Of each volume that a 2-D model is audited on; 0 for the whole volume", special=WHOLE
        )
        form.addRow("Cases", row(cases, QLabel("Slices"), slices))
        self.levels = QLineEdit()
        self.levels.setToolTip("ε of the curve in 1/255 of the window, such as 2, 4, 8, 10")
        self.levels.setAccessibleName("ε of the curve in 1/255")
        form.addRow("ε (1/255)", self.levels)
        self.report_at = GroupedBox("The ε that single figures and the verdict are given for")
        form.addRow("Report at", self.report_at)
        steps = whole("steps", 1, "Steps of the white-box attack")
        longer = whole("longer", 1, "Steps of the same attack once more, to see that more of them change nothing")
        form.addRow("Steps", row(steps, QLabel("Longer"), longer))
        restarts = whole("restarts", 0, "Further runs of the white-box attack from other random starts")
        queries = whole("queries", 1, "Of the black-box attack, which sees no gradient")
        form.addRow("Restarts", row(restarts, QLabel("Queries"), queries))
        sea = whole("sea_steps", 0, "Steps of each member of the ensemble of losses; 0 leaves it out", special=OFF)
        self.joint = QCheckBox("joint")
        self.joint.setToolTip("Attack the mask, the encoder's features and kept auxiliary heads together")
        form.addRow("SEA", row(sea, self.joint))
        seed = whole("seed", 0, "Of everything random: the same seed gives the same table")
        threads = whole("threads", 1, "On a CPU; results are the same only for the same number")
        form.addRow("Seed", row(seed, QLabel("Threads"), threads))
        form.addRow("Tolerance", self._setting("tolerance", real(0.1, 1000, 1, " mm", "Of the surface Dice")))
        self.headline = QCheckBox("Headline to the models' cards")
        self.headline.setToolTip(
            "When the audit has finished, write clean and worst-case Dice and the verdict into the folders of your own "
            "models; the models dock shows them. Models that came with the program are never changed"
        )
        form.addRow(self.headline)
        self.out = QLineEdit()
        self.out.setToolTip("Folder for table and report; by default a new one beside your library of models")
        self.out.setAccessibleName("Folder for the results")
        self.browse_out = browse_button("Choose the folder for the results")
        form.addRow("Into", row(self.out, self.browse_out))
        return inside

    def _build_run(self) -> None:
        column = self.column
        self.note = words()
        column.addWidget(self.note)
        self.start = QPushButton("Start")
        self.start.setToolTip("Audit in a process of its own; the window stays free, and may be closed")
        self.cancel = QPushButton("Cancel")
        self.cancel.setToolTip("End now and keep what is done; pressed again, the process is ended at once")
        self.resume = QPushButton("Resume")
        self.resume.setToolTip("Go on where the audit ended; nothing is computed twice")
        column.addLayout(button_row(self.start, self.cancel, self.resume))
        self.bar = QProgressBar()
        self.bar.setTextVisible(True)
        self.bar.setAccessibleName("Jobs of the audit")
        column.addWidget(self.bar)
        self.told = words()
        column.addWidget(self.told)
        self.remarks = words()
        column.addWidget(self.remarks)
        self.open_button = QPushButton("Open an audit…")
        self.open_button.setToolTip("Show an audit that was started before, here or on the command line")
        self.open_menu = QMenu(self.open_button)
        self.open_button.setMenu(self.open_menu)
        self.new = QPushButton("New audit")
        self.new.setToolTip("Let go of this audit, which stays as it is, and choose another one")
        self.report = QPushButton("Open report")
        self.report.setToolTip("Figures, curves, worst cases and settings in one page, in the browser")
        column.addLayout(button_row(self.new, self.report))
        column.addLayout(button_row(self.open_button))

    def _build_rows(self) -> QWidget:
        inside, column = empty_column()
        self.filter = QLineEdit()
        self.filter.setPlaceholderText("Filter by case, model, attack, ε…")
        self.filter.setToolTip("Rows that have all these words, such as: pgd 8/255")
        self.filter.setClearButtonEnabled(True)
        self.filter.setAccessibleName("Filter of the results")
        column.addWidget(self.filter)
        self.table = AuditTable(self)
        self.view = AuditView(self.table)
        self.view.setFixedHeight(320)
        self.view.setToolTip("Double-click or Enter: look at the case")
        column.addWidget(self.view)
        self.rows_note = words()
        column.addWidget(self.rows_note)
        return inside

    def _whole(self, name: str, least: int, tip: str, special: str = "") -> QSpinBox:
        box = whole(least, 10**6, tip)
        box.setSpecialValueText(special)
        return self._setting(name, box)

    def _setting(self, name: str, box: Any) -> Any:
        box.valueChanged.connect(lambda value: self._tune(**{name: None if name == "cases" and not value else value}))
        self.fields[name] = box
        return box

    # --- wiring ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        a, s = self.auditor, self.session
        self.models.itemChanged.connect(self._on_ticked)
        self.data.editingFinished.connect(lambda: self._set("data", _path(self.data)))
        self.browse.clicked.connect(self._on_browse)
        self.browse_list.clicked.connect(self._on_browse_list)
        self.keep_seen.toggled.connect(lambda on: self._set("keep_seen", on))
        for choice, button in self.tiers.items():
            button.toggled.connect(lambda on, choice=choice: self._on_tier(choice, on))
        self.levels.editingFinished.connect(self._on_levels)
        self.report_at.chosen.connect(lambda epsilon: self._tune(report_epsilon=epsilon))
        self.joint.toggled.connect(lambda on: self._tune(joint=on))
        self.headline.toggled.connect(lambda on: self._set("headline", on))
        self.out.editingFinished.connect(lambda: self._set("out", _path(self.out)))
        self.browse_out.clicked.connect(self._on_browse_out)
        self.start.clicked.connect(a.start)
        self.cancel.clicked.connect(a.cancel)
        self.resume.clicked.connect(a.resume)
        self.new.clicked.connect(a.let_go)
        self.open_menu.aboutToShow.connect(self._fill_menu)
        self.report.clicked.connect(self._on_report)
        self.filter.textChanged.connect(self._on_filter)
        self.view.chosen.connect(self._on_row)
        a.looked.connect(self._on_looked)
        a.refreshed.connect(self._on_refreshed)
        a.finished.connect(self._on_finished)
        a.failed.connect(self._on_failed)
        for name in ("models", "data", "tier", "changes", "keep_seen", "headline", "out"):
            getattr(s.events, name).connect(self._mirror)
        a.worker.end_with(self)

    def _set(self, name: str, value: Any) -> None:
        if not self._filling and getattr(self.session, name) != value:
            setattr(self.session, name, value)

    def _tune(self, **values: Any) -> None:
        if self._filling:
            return
        try:
            self.session.tune(**values)
        except CeaseError as error:
            show_error(str(error))
        self._mirror()

    def _mirror(self) -> None:
        """Show the session's choices, whoever made them."""
        s = self.session
        self._filling = True
        settings = s.settings
        self.data.setText("" if s.data is None else str(s.data))
        self.keep_seen.setChecked(s.keep_seen)
        self.tiers[s.tier].setChecked(True)
        for name, box in self.fields.items():
            box.setValue(getattr(settings, name) or box.minimum())
        self.levels.setText(", ".join(f"{LEVELS * e:.4g}" for e in settings.epsilons))
        self.report_at.offer(
            {"": [Choice(f"{LEVELS * e:.4g}/255", e) for e in settings.epsilons]}, settings.report_epsilon
        )
        self.joint.setChecked(settings.joint)
        self.headline.setChecked(s.headline)
        self.out.setText("" if s.out is None else str(s.out))
        self.out.setPlaceholderText(str(audits_place() / "…"))
        self._filling = False
        changed = f": {len(s.changes)} changed" if s.changes else ""
        self.more_part.title = f"More settings{changed}"
        self.tier_part.title = "Tier" if not s.changes else f"Tier: {s.tier}, with changed settings"
        self._offer_ticks()
        self._enable()

    # --- the choices ----------------------------------------------------------------------------------------

    def offer_models(self) -> None:
        """List the library's models; ticks stay."""
        self._cards = available_models()
        gone = [m for m in self.session.models if m not in self._cards]
        self._filling = True
        self.models.clear()
        for folder, card in self._cards.items():
            item = QListWidgetItem(card.title)
            item.setData(Qt.ItemDataRole.UserRole, folder)
            self.models.addItem(item)
        self._filling = False
        if gone:
            self.session.models = tuple(m for m in self.session.models if m in self._cards)
        self._offer_ticks()

    def _offer_ticks(self) -> None:
        """Let those models be ticked that can be audited together with the ones that are."""
        chosen = [(folder, self._cards[folder]) for folder in self.session.models if folder in self._cards]
        self._filling = True
        for item in self._items():
            folder: Path = item.data(Qt.ItemDataRole.UserRole)
            card = self._cards[folder]
            reason = why_not(folder, card, chosen)
            usable = Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsUserCheckable | Qt.ItemFlag.ItemIsSelectable
            item.setFlags(Qt.ItemFlag.NoItemFlags if reason else usable)
            ticked = folder in self.session.models
            item.setCheckState(Qt.CheckState.Checked if ticked else Qt.CheckState.Unchecked)
            classes = ", ".join(c.name for c in card.classes)
            item.setToolTip(tip_of(reason or f"Segments {classes}; defence: {card.defence}\n{folder}"))
        self._filling = False
        others = sum(not item.flags() for item in self._items())
        note = "Tick one model, or several to compare them." if not chosen else ""
        if others:
            plural = "s" * (others != 1)
            note = f"{others} model{plural} cannot join the chosen one: point at a grey one for the reason."
        self.models_note.setText(note)
        self.models_note.setVisible(bool(note))

    def _items(self) -> list[QListWidgetItem]:
        return [self.models.item(i) for i in range(self.models.count())]

    def _on_ticked(self, item: QListWidgetItem) -> None:
        if self._filling:
            return
        folder = item.data(Qt.ItemDataRole.UserRole)
        others = tuple(m for m in self.session.models if m != folder)
        self.session.models = (*others, folder) if item.checkState() == Qt.CheckState.Checked else others

    def _on_browse(self) -> None:
        folder = self.ask_folder("Data set: a folder with images/ and labels/")
        if folder is not None:
            self._set("data", folder)

    def _on_browse_list(self) -> None:
        file = self.ask_file("Data set: a list of cases")
        if file is not None:
            self._set("data", file)

    def _on_browse_out(self) -> None:
        folder = self.ask_folder("Folder for the results of the audit")
        if folder is not None:
            self._set("out", folder)

    def _on_tier(self, name: Tier, on: bool) -> None:
        if on and not self._filling:
            self.session.choose_tier(name)

    def _on_levels(self) -> None:
        numbers = self.levels.text().replace(f"/{LEVELS}", " ").replace(",", " ").replace(";", " ").split()
        try:
            levels = tuple(float(number) / LEVELS for number in numbers)
        except ValueError:
            show_error("ε of the curve are numbers in 1/255 of the window, such as 2, 4, 8, 10; write them so.")
            self._mirror()
            return
        if [f"{LEVELS * e:.4g}" for e in self.session.settings.epsilons] != [f"{LEVELS * e:.4g}" for e in levels]:
            self._tune(epsilons=levels)

    def _on_looked(self) -> None:
        """Show what the data have for an audit, or what is wrong with them."""
        s, a = self.session, self.auditor
        told = ""
        if a.fault:
            told = f"<b>⚠ Cannot start:</b> {escape(a.fault)}"
        elif a.looking:
            told = "Counting the cases…"
        elif a.present is not None:
            found = a.present
            told = f"{_cases(found.cases)}; {found.taken} will be audited"
            if found.seen:
                told += f", {found.seen} {'were' if found.seen != 1 else 'was'} seen in training"
                told += " and kept" if s.keep_seen else " and left out"
            told += "."
        self.facts.setText(told)
        self.facts.setVisible(bool(told))
        missing = [name for name, there in (("a model", s.models), ("a data folder", s.data)) if not there]
        self.note.setText(f"Choose {' and '.join(missing)} to start." if missing else "")
        self._enable()

    # --- the audit ------------------------------------------------------------------------------------------

    def _enable(self) -> None:
        s, a = self.session, self.auditor
        ready = bool(s.models) and s.data is not None and not a.fault
        self.start.setEnabled(ready and not s.alive)
        self.cancel.setEnabled(s.alive)
        self.resume.setEnabled(s.resumable)
        self.open_button.setEnabled(not s.alive)
        self.new.setVisible(a.run is not None and not s.alive)
        self.report.setVisible(a.run is not None and not s.alive and (a.run.folder / REPORT).is_file())
        self.note.setVisible(bool(self.note.text()) and a.run is None)
        for part in self.parts:
            part.inside.setEnabled(not s.alive)

    def _on_refreshed(self) -> None:
        """Show what the audit has found, and where it stands."""
        s, a = self.session, self.auditor
        told = s.told + (" Ending; what is done is kept." if a.asked else "")
        if s.headlines:
            told += f" Headline written to {', '.join(s.headlines)}."
        self.told.setText(told)
        self.told.setVisible(bool(told))
        self.told.setToolTip("" if s.folder is None else tip_of(str(s.folder)))
        self.remarks.setText(s.notes)
        self.remarks.setVisible(bool(s.notes))
        self.bar.setVisible(a.run is not None)
        self.bar.setRange(0, s.jobs or (0 if s.alive else 1))
        self.bar.setValue(s.done)
        self.bar.setFormat("%v of %m jobs" if s.jobs else "")
        self._show_activity()
        self.table.show_rows(s.rows, s.results.titles if s.results else {})
        self.view.fit(failures=s.results is not None and s.results.failures > 0)
        self._count_rows()
        self._draw()
        if s.summary is not self._summary:
            self._summary = s.summary
            self.verdict.show_summary(s.summary)
            self.checks.show_summary(s.summary)
        for part in (self.verdict_part, self.checks_part):
            part.setVisible(s.summary is not None)
        self.rows_part.setVisible(bool(s.rows))
        self._fold()
        self._enable()

    def _draw(self) -> None:
        s = self.session
        titles = {} if s.results is None else s.results.titles
        curves = {} if s.results is None else {title: s.results.curve(name) for name, title in titles.items()}
        if set(self.curves.lines) - set(curves):
            self.curves.forget()
        for title, points in curves.items():
            self.curves.show_curve(title, points)
        bands = {titles.get(m.name): _band(m.curve) for m in (s.summary.models if s.summary else ())}
        for title in curves:
            self.curves.show_band(title, bands.get(title, ()))
        self.curves_part.setVisible(any(curves.values()))

    def _show_activity(self) -> None:
        """The same progress in napari's own place for it."""
        s = self.session
        if not s.alive:
            self._end_activity()
            return
        if self._progress is None and s.jobs:
            self._progress = progress(total=s.jobs, desc="Audit")
        if self._progress is not None and s.done > self._progress.n:
            self._progress.update(s.done - self._progress.n)

    def _end_activity(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None

    def _fold(self) -> None:
        """Of an audit its findings are looked at, not the choices."""
        shown = self.auditor.run is not None
        if shown != self._folded:
            self._folded = shown
            for part in self.parts:
                part.open(not shown and part is not self.more_part)

    def _on_filter(self, text: str) -> None:
        self.table.set_filter(text)
        self._count_rows()

    def _count_rows(self) -> None:
        shown, known = self.table.rowCount(), len(self.session.rows)
        failed = self.session.results.failures if self.session.results else 0
        told = f"{shown} of {known} rows" if shown != known else f"{known} rows"
        self.rows_note.setText(told + (f"; ⚠ {failed} failed, see Error" if failed else ""))

    def _on_row(self, row: Row) -> None:
        try:
            found = self.auditor.chosen(row)
        except CeaseError as error:
            show_error(str(error))
            return
        if found is not None:
            self.case_chosen.emit(found)

    def _on_report(self) -> None:
        if self.auditor.run is not None:
            self.open_url(QUrl.fromLocalFile(str(self.auditor.run.folder / REPORT)))

    def _on_finished(self, folder: Path) -> None:
        show_info(f"The audit in {folder.name} has finished.")
        self.audited.emit(folder)

    def _on_failed(self, sentence: str) -> None:
        show_error(sentence)
        self._enable()

    def _fill_menu(self) -> None:
        self.open_menu.clear()
        for run in find_audits(audits_place())[:RECENT]:
            action = self.open_menu.addAction(entry_of(f"{run.folder.name} ({run.status().stage})"))
            action.triggered.connect(lambda _=False, run=run: self.open_audit(run.folder))
        self.open_menu.addSeparator()
        self.open_menu.addAction("Another folder…").triggered.connect(self._open_elsewhere)

    def _open_elsewhere(self) -> None:
        folder = self.ask_folder("Folder of an audit")
        if folder is not None:
            self.open_audit(folder)

    def open_audit(self, folder: Path) -> None:
        """Show an audit that was started before; the user is told if there is none."""
        try:
            self.auditor.open(folder)
        except CeaseError as error:
            show_error(str(error))

    # --- the end --------------------------------------------------------------------------------------------

    def may_leave(self) -> bool:
        """Nothing is asked, since an audit goes on."""
        # No more than that: another dock may ask the user, and the window stay.
        self.auditor.worker.cancel()
        self._end_activity()
        return True

    def let_loose(self) -> None:
        """Stop looking; an audit goes on."""
        self.auditor.shutdown()
        self._end_activity()

    def showEvent(self, event: Any) -> None:
        """Shown, the dock has its theme, and the library may have changed."""
        super().showEvent(event)
        align([self._form])
        if available_models() != self._cards:
            self.offer_models()

    def colour(self, text: str, ground: str) -> None:
        """For the curves."""
        self.curves.set_colours(text, ground)


def _band(curve: Curve) -> Band:
    """ε with the interval there; nothing where none was worked out."""
    return tuple((p.epsilon, p.low, p.high) for p in curve.points if p.low is not None and p.high is not None)


def _cases(count: int) -> str:
    return f"{count} case" + ("" if count == 1 else "s")


def _path(line: QLineEdit) -> Path | None:
    text = line.text().strip()
    return Path(text).expanduser() if text else None
