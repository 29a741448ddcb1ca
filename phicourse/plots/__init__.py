"""Every figure of the course: functions of plain arrays that return a matplotlib Figure."""

from phicourse.plots.bits import draw_bits
from phicourse.plots.importance import draw_importance
from phicourse.plots.next_token import draw_next_tokens
from phicourse.plots.quantized import draw_quantized
from phicourse.plots.roofline import draw_race, draw_roofline
from phicourse.plots.sizes import draw_sizes
from phicourse.plots.weights import draw_family, draw_floor_plan

__all__ = [
    "draw_bits",
    "draw_family",
    "draw_floor_plan",
    "draw_importance",
    "draw_next_tokens",
    "draw_quantized",
    "draw_race",
    "draw_roofline",
    "draw_sizes",
]
