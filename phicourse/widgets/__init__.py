"""Things to move in a notebook, on top of `phicourse.plots`; each shows its static twin where nothing can move."""

from phicourse.widgets.hex_microscope import HexMicroscope

__all__ = ["HexMicroscope"]
