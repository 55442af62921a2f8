"""The engine: scans, segmentation models, attacks, defences and their honest evaluation. It knows no screen."""

from cease_core.errors import CeaseError
from cease_core.scan import Scan, Window

__version__ = "0.1.0"

__all__ = ["CeaseError", "Scan", "Window", "__version__"]
