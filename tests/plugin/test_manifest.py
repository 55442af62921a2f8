"""The manifest names what there is, and napari finds it."""

from __future__ import annotations

from pathlib import Path

import npe2
import pytest
from napari._app_model.constants import MenuId

import napari_cease
from cease_core.io import READABLE, WRITABLE_LABELS
from napari_cease.samples import SAMPLES


@pytest.fixture(scope="module")
def manifest():
    path = Path(napari_cease.__file__).parent / "napari.yaml"
    manifest = npe2.PluginManifest.from_file(path)
    manifest.validate_imports()
    return manifest


def test_it_is_the_installed_one(manifest):
    assert npe2.PluginManifest.from_distribution("napari-cease").contributions == manifest.contributions


def test_every_command_is_used_and_belongs_to_us(manifest):
    contributions = manifest.contributions
    ids = [command.id for command in contributions.commands]
    assert all(i.startswith("napari-cease.") for i in ids)
    used = [
        entry.command
        for entries in (contributions.readers, contributions.writers, contributions.widgets)
        for entry in entries
    ] + [sample.command for sample in contributions.sample_data]
    used += [item.command for items in contributions.menus.values() for item in items]
    assert sorted(used) == sorted(ids)


def test_menus_are_those_that_napari_lets_plugins_add_to(manifest):
    assert set(manifest.contributions.menus) <= {str(menu) for menu in MenuId.contributables()}


def test_every_preference_says_what_it_is_and_what_holds_without_it(manifest):
    for section in manifest.contributions.configurations.values():
        for name, setting in section.properties.items():
            assert setting.title, name
            assert setting.description, name
            assert setting.default is not None, name


def test_readers_cover_what_the_engine_reads(manifest):
    (reader,) = manifest.contributions.readers
    assert reader.accepts_directories
    assert {pattern.removeprefix("*") for pattern in reader.filename_patterns} == set(READABLE)


def test_writers_offer_only_what_the_engine_writes(manifest):
    for writer in manifest.contributions.writers:
        assert set(writer.filename_extensions) <= set(WRITABLE_LABELS)
        assert writer.filename_extensions[0] == ".nii.gz"


def test_the_sample_menu_is_the_listing(manifest):
    menu = {s.key: s.display_name for s in manifest.contributions.sample_data}
    assert menu == {key: sample.title for key, sample in SAMPLES.items()}


@pytest.mark.parametrize("name", ["scan.nii.gz", "SCAN.NII.GZ", "mask.nrrd", "photo.PNG"])
def test_napari_asks_us_for_our_files(manifest, name):
    manager = npe2.PluginManager()
    manager.register(manifest)
    assert [r.plugin_name for r in manager.iter_compatible_readers(name)] == ["napari-cease"]


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [
        ("mask.nii.gz", "labels", "napari-cease.write_labels"),
        ("mask.png", "labels", "napari-cease.write_labels"),
        ("mask", "labels", "napari-cease.write_labels"),
        ("scan.nii.gz", "image", "napari-cease.write_image"),
    ],
)
def test_napari_asks_us_to_save(manifest, name, kind, command):
    manager = npe2.PluginManager()
    manager.register(manifest)
    writer, path = manager.get_writer(name, [kind])
    assert writer is not None
    assert writer.command == command
    assert path.startswith(name)
