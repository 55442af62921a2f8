"""Auxiliary tasks, which a shared encoder learns beside segmentation: a target, a head and a loss each."""

from cease_core.tasks.base import Head, Setting, Task
from cease_core.tasks.boundary import Boundary
from cease_core.tasks.distance_map import DistanceMap
from cease_core.tasks.edges import Edges
from cease_core.tasks.gradients import measure
from cease_core.tasks.heads import DenseHead, GlobalHead
from cease_core.tasks.histogram import Histogram
from cease_core.tasks.hog import HOG
from cease_core.tasks.inpainting import Inpainting
from cease_core.tasks.jigsaw import Jigsaw
from cease_core.tasks.low_pass import LowPass
from cease_core.tasks.reconstruction import Reconstruction
from cease_core.tasks.relevance import Relevance, Score, Selection, select
from cease_core.tasks.rotation import Rotation
from cease_core.tasks.shape import Shape
from cease_core.tasks.sobel import Sobel
from cease_core.tasks.superpixel import Superpixel

TASKS: dict[str, Task] = {
    "reconstruction": Reconstruction(),
    "inpainting": Inpainting(),
    "sobel": Sobel(),
    "edges": Edges(),
    "hog": HOG(),
    "histogram": Histogram(),
    "low_pass": LowPass(),
    "superpixel": Superpixel(),
    "rotation": Rotation(),
    "jigsaw": Jigsaw(),
    "boundary": Boundary(),
    "distance_map": DistanceMap(),
    "shape": Shape(),
}
"""The candidates, with default options. Another one is a file with a subclass of `Task`, and a line here."""

__all__ = [
    "HOG",
    "TASKS",
    "Boundary",
    "DenseHead",
    "DistanceMap",
    "Edges",
    "GlobalHead",
    "Head",
    "Histogram",
    "Inpainting",
    "Jigsaw",
    "LowPass",
    "Reconstruction",
    "Relevance",
    "Rotation",
    "Score",
    "Selection",
    "Setting",
    "Shape",
    "Sobel",
    "Superpixel",
    "Task",
    "measure",
    "select",
]
