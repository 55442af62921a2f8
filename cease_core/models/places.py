"""Where models lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

SHIPPED = Path(__file__).parent / "shipped"


def user_library() -> Path:
    """Folder of the user's own models: ``$CEASE_MODELS``, or ``~/.napari-cease/models``."""
    return Path(os.environ.get("CEASE_MODELS") or Path.home() / ".napari-cease" / "models")
