"""What the demo promises: the undefended mask breaks, the defended one holds, and nobody has seen the case before."""

import pytest
import torch

from cease_core.attacks import PGD
from cease_core.attacks.on_scan import pose_on_scan
from cease_core.data import find_cases
from cease_core.evaluation import distortion
from cease_core.io import read_labels, read_scan
from cease_core.models import find_model, load_model, prepare
from cease_core.models.checkpoint import load_card
from napari_cease.scenes import DEMO_LEVEL, SCENES

FIVE_MEGABYTES = 5_000_000
NAMES = [name for scene in SCENES.values() for name in (scene.undefended, scene.defended)]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_small_and_says_where_it_comes_from(name):
    folder = find_model(name)
    card = load_card(folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) < FIVE_MEGABYTES
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "card.json"}
    assert card.data is not None
    assert card.data.train
    assert card.data.validation
    assert card.licence != "unknown"
    assert not set(card.data.train) & set(card.data.validation)


@pytest.mark.parametrize("scene", SCENES.values(), ids=list(SCENES))
def test_no_training_saw_a_sample(scene):
    samples = {case.name for case in find_cases(scene.scan_path.parent.parent)}
    for name in (scene.undefended, scene.defended):
        data = load_card(find_model(name)).data
        assert not samples & {*data.train, *data.validation}


def attacked(scene, name):
    """Clean Dice, Dice and PSNR under the demo's attack on the demo's case, a volume as a whole."""
    scan = read_scan(scene.scan_path)
    labels = read_labels(scene.labels_path, like=scan)
    subject = pose_on_scan(prepare(load_model(find_model(name))), scan, labels)
    attack = PGD(epsilon=DEMO_LEVEL / 255)
    problem = subject.problem(attack.loss)
    result = attack.run(problem)
    clean = problem.look(torch.zeros_like(problem.images))[2]
    return float(clean), float(result.dice), distortion(problem.images, result.adversarial).psnr


@pytest.mark.parametrize("key", ["polyp", "cardiac"])
def test_the_undefended_mask_breaks_and_the_defended_one_holds(key):
    scene = SCENES[key]
    clean, broken, psnr = attacked(scene, scene.undefended)
    assert clean >= 0.8
    assert broken <= clean / 2
    assert psnr >= 30
    clean, held, psnr = attacked(scene, scene.defended)
    assert held >= 0.7 * clean
    assert psnr >= 30


def test_the_hippocampus_is_attacked_as_a_volume_in_two_classes():
    scene = SCENES["hippocampus"]
    clean, broken, _ = attacked(scene, scene.undefended)
    _, held, _ = attacked(scene, scene.defended)
    assert clean >= 0.8
    assert broken < held
