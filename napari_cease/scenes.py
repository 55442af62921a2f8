"""The demo's scenes: a held-out case of the sample data, and the two models that see it. No napari here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_cease.samples import SAMPLES

DEMO_LEVEL = 8
"""ε that the demo shows, in 1/255."""


@dataclass(frozen=True)
class Scene:
    """A scene of the demo."""

    key: str
    title: str
    undefended: str
    defended: str

    @property
    def scan_path(self) -> Path:
        """The sample's scan."""
        return SAMPLES[self.key].scan

    @property
    def labels_path(self) -> Path:
        """The sample's reference mask."""
        path = SAMPLES[self.key].labels
        assert path is not None
        return path


SCENES = {
    scene.key: scene
    for scene in (
        Scene("polyp", "Polyp endoscopy", "polyp-undefended", "polyp-defended"),
        Scene("cardiac", "Cardiac MR", "cardiac-undefended", "cardiac-defended"),
        Scene("hippocampus", "Hippocampus MR", "hippocampus-undefended", "hippocampus-defended"),
    )
}
