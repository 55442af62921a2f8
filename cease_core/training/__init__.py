"""Training of undefended and adversarially trained models, as a generator of events."""

from cease_core.training.config import AdversarialTraining, TrainingConfig, load_config
from cease_core.training.trainer import EpochDone, Event, Finished, train

__all__ = ["AdversarialTraining", "EpochDone", "Event", "Finished", "TrainingConfig", "load_config", "train"]
