"""A run's figures, epoch by epoch, as CSV and as lines of JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from cease_core.errors import CeaseError
from cease_core.io.files import write_text
from cease_core.training.events import EpochDone

CSV, LINES = "history.csv", "history.jsonl"


class History:
    """Rows so far; written anew each time, so that a resumed run has no row twice.

    Parameters
    ----------
    out
        Folder of the run.
    tensorboard
        Also write event files for TensorBoard.

    Raises
    ------
    CeaseError
        If TensorBoard is wanted and not installed.
    """

    def __init__(self, out: Path, *, tensorboard: bool = False) -> None:
        self.out = out
        self.rows: list[dict[str, Any]] = []
        self._writer = _summary_writer() if tensorboard else None
        self._board: Any = None

    def add(self, event: EpochDone) -> None:
        """Take in an epoch and write both files."""
        figures = {
            "epoch": event.epoch,
            "loss": event.loss,
            "clean_dice": event.clean_dice,
            "robust_dice": event.robust_dice,
            "gradients": event.gradients,
            "seconds": round(event.seconds, 2),
            **event.parts,
        }
        self.rows.append({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in figures.items()})
        self.write()
        if self._writer is not None:
            # What an interrupted run wrote of this epoch and of later ones goes.
            self._board = self._board or self._writer(str(self.out / "tensorboard"), purge_step=event.epoch)
            for name, value in self.rows[-1].items():
                if value is not None and name != "epoch":
                    self._board.add_scalar(name, value, event.epoch)
            self._board.flush()

    def write(self) -> None:
        """Both files, as a whole."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.out / CSV, table.getvalue())
        write_text(self.out / LINES, "".join(json.dumps(row) + "\n" for row in self.rows))


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise CeaseError(
            "TensorBoard is not installed; run: pip install 'napari-cease[tensorboard]', or set tensorboard to false."
        ) from error
    return SummaryWriter
