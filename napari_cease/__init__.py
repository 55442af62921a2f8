"""The face: napari widgets, readers and writers over `cease_core`."""
