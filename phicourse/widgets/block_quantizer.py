"""You be the quantizer: give one block a scale and a minimum, and see what the model says if all blocks get them so."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from phicourse.demo import N_CANDIDATES
from phicourse.evaluate.what_if import matrix_names, replaced_weights, weights_of
from phicourse.generate import LLM
from phicourse.generate.sampling import probabilities
from phicourse.plots.block import draw_block, draw_error_map
from phicourse.plots.next_token import draw_next_tokens
from phicourse.plots.style import Picture
from phicourse.quantize.blocks import Blocks, pack, pack_nibbles, unpack_nibbles
from phicourse.quantize.legacy import dequantize_q4_1
from phicourse.quantize.rounding import quiet
from phicourse.widgets.live import put_picture, show_picture

Float32 = NDArray[np.float32]

BLOCK, LEVELS = 32, 16
PLACES = ("this tensor", "this layer", "all layers")
SCALES, SHIFTS = (0.4, 1.4, 0.01), (-2.0, 5.0, 0.05)  # first, last, step of the sliders


@dataclass(frozen=True)
class Choice:
    """A scale and a minimum, such that they can be given to any block.

    scale  in parts of the scale with which 16 levels just reach from the smallest weight to the largest
    shift  how far above the smallest weight the minimum lies, in such scales
    """

    scale: float = 1.0
    shift: float = 0.0


Q4_1 = Choice()


@quiet
def quantize_with(weights: Float32, scale: ArrayLike, shift: ArrayLike) -> Blocks:
    """Quantize to Q4_1 blocks with a scale and a minimum of one's own.

    weights       (..., 32) float32
    scale, shift  as in `Choice`, numbers or (...)
    returns       (...) blocks
    """
    lowest = weights.min(axis=-1)
    step = (weights.max(axis=-1) - lowest) / np.float32(LEVELS - 1)
    d, minimum = step * np.asarray(scale, np.float32), lowest + step * np.asarray(shift, np.float32)
    levels = np.divide(weights - minimum[..., None], d[..., None])
    codes = np.clip(np.floor(np.nan_to_num(levels) + np.float32(0.5)), 0, LEVELS - 1)
    return pack("Q4_1", d=d, m=minimum, qs=pack_nibbles(codes.astype(np.uint8)))


def errors_of(weights: Float32, scale: ArrayLike, shift: ArrayLike) -> Float32:
    """The root mean square of the error of one block (32,), for one or many choices: (...)."""
    blocks = quantize_with(weights, scale, shift)
    difference = dequantize_q4_1(blocks[..., None]) - weights
    return np.asarray(np.sqrt(np.mean(difference * difference, axis=-1)), np.float32)


class BlockQuantizer:
    """Shows a block of a model's weights with a scale and a minimum that you choose.

    model          loaded with backend="torch"
    tensor         a matrix, by its name in GGUF files; row, block: which 32 weights of it
    prompt         what the next token is asked for
    scale, shift   the choice to begin with, see `Choice`
    where          which blocks get the same choice, each for its own range: one of PLACES

    Keys: Tab goes from slider to slider, the arrow keys move one.
    """

    def __init__(
        self,
        model: LLM,
        tensor: str,
        row: int,
        block: int,
        prompt: str,
        scale: float = 1.0,
        shift: float = 0.0,
        where: str = PLACES[1],
    ) -> None:
        self.model, self.tensor, self.prompt, self.where = model, tensor, prompt, where
        self.weights = weights_of(model, tensor)[row, block * BLOCK : (block + 1) * BLOCK].copy()  # (32,)
        self.choice = Choice(scale, shift)

    # ---- what the choice does ----------------------------------------------------------------------------

    @cached_property
    def error_map(self) -> tuple[Float32, Float32, Float32]:
        """Scales (n,), shifts (m,), and the errors (m, n) of all of them, in parts of Q4_1's."""
        scales, shifts = (
            np.arange(first, last + step, 2 * step).astype(np.float32)
            for first, last, step in (SCALES, SHIFTS)
        )
        return scales, shifts, self.relative_errors(*np.meshgrid(scales, shifts))

    def relative_errors(self, scale: ArrayLike, shift: ArrayLike) -> Float32:
        """Errors of choices, in parts of Q4_1's: (...)."""
        return errors_of(self.weights, scale, shift) / errors_of(self.weights, Q4_1.scale, Q4_1.shift)

    @property
    def best(self) -> Choice:
        """The choice with the smallest error on the map."""
        scales, shifts, errors = self.error_map
        i, j = np.unravel_index(errors.argmin(), errors.shape)
        return Choice(round(float(scales[j]), 2), round(float(shifts[i]), 2))

    @cached_property
    def _before(self) -> tuple[list[int], NDArray[np.float64]]:
        """The ids of the prompt, and what the model expects behind it: (vocab,)."""
        ids = self.model.tokenize("", special=True) + self.model.tokenize(self.prompt)
        return ids, probabilities(self.model.logits(ids)[-1])

    def tensors(self) -> list[str]:
        """The names of the matrices that get the choice."""
        if self.where == PLACES[0]:
            return [self.tensor]
        layer = "blk." if self.where == PLACES[2] else self.tensor.rsplit(".", 2)[0] + "."
        return [name for name in matrix_names(self.model) if name.startswith(layer)]

    def odds(self) -> tuple[list[str], dict[str, list[float]]]:
        """The likeliest next tokens of the model as it is, and what it gives them with the choice."""
        ids, before = self._before
        with replaced_weights(self.model, {name: self._squeezed(name) for name in self.tensors()}):
            after = probabilities(self.model.logits(ids)[-1])
        shown = np.argsort(-before)[:N_CANDIDATES]
        tokens = [self.model.detokenize([int(id)], special=True) for id in shown]
        return tokens, {"as it is": before[shown].tolist(), "your choice": after[shown].tolist()}

    def _squeezed(self, name: str) -> Float32:
        weights = weights_of(self.model, name)
        blocks = quantize_with(weights.reshape(len(weights), -1, BLOCK), self.choice.scale, self.choice.shift)
        return dequantize_q4_1(blocks)

    # ---- how it looks ------------------------------------------------------------------------------------

    def static(self) -> Figure:
        """Draw the block, the map of errors, and the odds."""
        block = self._block()
        codes = unpack_nibbles(block["qs"])  # (32,)
        steps = np.float32(block["d"]) * np.arange(LEVELS, dtype=np.float32)
        picture = Picture(9.5, 5.6)
        grid = picture.add_gridspec(2, 2, height_ratios=(1.05, 1))
        draw_block(
            self.weights,
            np.float32(block["m"]) + steps,
            codes,
            picture.add_subplot(grid[0, :]),
            self._title(),
        )
        marks = {"best": self.best, "Q4_1": Q4_1, "you": self.choice}
        draw_error_map(
            *self.error_map,
            {name: (each.scale, each.shift) for name, each in marks.items()},
            picture.add_subplot(grid[1, 0]),
        )
        end = " ".join(self.prompt.split()[-3:])
        draw_next_tokens(*self.odds(), picture.add_subplot(grid[1, 1]), title=f"“… {end} …”, {self.where}")
        return picture

    def _block(self) -> Blocks:
        return quantize_with(self.weights, self.choice.scale, self.choice.shift)

    def _title(self) -> str:
        block = self._block()
        change = self.relative_errors(self.choice.scale, self.choice.shift) - 1
        return f"scale {block['d']:.4f}, minimum {block['m']:.3f}: {change:+.0%} error against Q4_1"

    def says(self) -> str:
        """Tell the choice in words and bytes, as HTML."""
        block = self._block()
        least = self.error_map[2].min() - 1
        raw = np.asarray(block).tobytes()
        return (
            f"<p>{self._title()}; the best choice here has {least:+.0%}."
            f" The odds on the right: the same choice for {self.where}.</p>"
            f"<p>In the file: <code>{raw[:2].hex(' ')} | {raw[2:4].hex(' ')} | {raw[4:].hex(' ')}</code></p>"
        )

    def live(self) -> Any:
        """Build the widget."""
        return _Desk(self).box

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return show_picture(f"BlockQuantizer({self.tensor})", self.static(), self.live)


class _Desk:
    """The controls of one live quantizer, and what they do."""

    def __init__(self, quantizer: BlockQuantizer) -> None:
        import ipywidgets

        self.quantizer = quantizer
        self.is_moving = False  # while a button moves the sliders
        self.scale = self._slider("scale", SCALES, quantizer.choice.scale)
        self.shift = self._slider("minimum", SHIFTS, quantizer.choice.shift)
        self.where = ipywidgets.ToggleButtons(
            options=PLACES, value=quantizer.where, style={"button_width": "96px"}
        )
        # a label of its own: that of ToggleButtons moves above them where the row is narrow
        self.label = ipywidgets.Label(
            "odds with", layout={"width": "80px", "display": "flex", "justify_content": "flex-end"}
        )
        self.buttons = [self._button("Q4_1", Q4_1), self._button("best", quantizer.best)]
        self.picture = ipywidgets.Image(format="png")
        self.text = ipywidgets.HTML()
        rows = [self.scale, self.shift, ipywidgets.HBox([self.label, self.where, *self.buttons])]
        self.box = ipywidgets.VBox([*rows, self.picture, self.text])
        self._draw()
        for control in (self.scale, self.shift, self.where):
            control.observe(self._on_change, names="value")

    def _slider(self, name: str, limits: Sequence[float], value: float) -> Any:
        import ipywidgets

        first, last, step = limits
        return ipywidgets.FloatSlider(
            value=value, min=first, max=last, step=step, description=name, layout={"width": "560px"}
        )

    def _button(self, name: str, choice: Choice) -> Any:
        import ipywidgets

        button = ipywidgets.Button(description=name, layout={"width": "72px"})
        button.on_click(lambda _: self.choose(choice))
        return button

    def choose(self, choice: Choice) -> None:
        """Move both sliders, and draw once."""
        self.is_moving = True
        self.scale.value, self.shift.value = choice.scale, choice.shift
        self.is_moving = False
        self._on_change()

    def _on_change(self, _: Any = None) -> None:
        if self.is_moving:
            return
        self.quantizer.choice = Choice(self.scale.value, self.shift.value)
        self.quantizer.where = self.where.value
        self._draw()

    def _draw(self) -> None:
        self.text.value = self.quantizer.says()  # first: it is there at once
        put_picture(self.picture, self.quantizer.static())
