"""Training of undefended and defended models, as a generator of events."""

from cease_core.training.config import DataSource, TrainingConfig, load_config
from cease_core.training.events import CheckpointSaved, EpochDone, Event, Finished, StepDone, TasksChosen
from cease_core.training.trainer import train

__all__ = [
    "CheckpointSaved",
    "DataSource",
    "EpochDone",
    "Event",
    "Finished",
    "StepDone",
    "TasksChosen",
    "TrainingConfig",
    "load_config",
    "train",
]
