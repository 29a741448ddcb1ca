"""Things to move in a notebook, on top of `phicourse.plots`; each shows its static twin where nothing can move."""

from phicourse.widgets.attention_viewer import AttentionViewer
from phicourse.widgets.block_quantizer import BlockQuantizer
from phicourse.widgets.hex_microscope import HexMicroscope
from phicourse.widgets.merge_animation import MergeAnimation
from phicourse.widgets.mix_designer import MixDesigner
from phicourse.widgets.sampling_playground import SamplingPlayground
from phicourse.widgets.sensitivity_map import SensitivityMap

__all__ = [
    "AttentionViewer",
    "BlockQuantizer",
    "HexMicroscope",
    "MergeAnimation",
    "MixDesigner",
    "SamplingPlayground",
    "SensitivityMap",
]
