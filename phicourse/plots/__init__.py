"""Every figure of the course: functions of plain arrays that return a matplotlib Figure."""

from phicourse.plots.attention import draw_attention, draw_heads
from phicourse.plots.bits import draw_bits
from phicourse.plots.block import draw_block, draw_error_map
from phicourse.plots.cells import draw_fragility, draw_types
from phicourse.plots.conversion import draw_exponents, draw_rope_pairs
from phicourse.plots.curves import draw_curves
from phicourse.plots.importance import draw_importance
from phicourse.plots.lattice import draw_pairs, draw_shares
from phicourse.plots.layout import draw_byte_differences, draw_layout
from phicourse.plots.mixes import draw_change, draw_mixes
from phicourse.plots.next_token import draw_next_tokens
from phicourse.plots.quantized import draw_quantized
from phicourse.plots.roofline import draw_race, draw_roofline
from phicourse.plots.rotation import draw_clocks
from phicourse.plots.search import draw_errors, draw_fit, draw_trials
from phicourse.plots.sensitivity import draw_sensitivity
from phicourse.plots.sizes import draw_sizes
from phicourse.plots.tradeoff import draw_tradeoff
from phicourse.plots.weights import draw_family, draw_floor_plan

__all__ = [
    "draw_attention",
    "draw_bits",
    "draw_block",
    "draw_byte_differences",
    "draw_change",
    "draw_clocks",
    "draw_curves",
    "draw_error_map",
    "draw_errors",
    "draw_exponents",
    "draw_family",
    "draw_fit",
    "draw_floor_plan",
    "draw_fragility",
    "draw_heads",
    "draw_importance",
    "draw_layout",
    "draw_mixes",
    "draw_next_tokens",
    "draw_pairs",
    "draw_quantized",
    "draw_race",
    "draw_roofline",
    "draw_rope_pairs",
    "draw_sensitivity",
    "draw_shares",
    "draw_sizes",
    "draw_tradeoff",
    "draw_trials",
    "draw_types",
]
