"""``python -m cease_core.cli``."""

from cease_core.cli import main

main()
