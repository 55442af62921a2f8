"""The engine: scans, segmentation models, attacks, defences and their honest evaluation. It knows no screen.

Nothing is imported here, so that the command line answers at once: take what you need from the subpackages.
"""

__version__ = "0.1.0"
