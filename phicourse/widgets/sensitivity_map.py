"""Which matrices are fragile: quantize one, leave all others alone, and see how far the model goes astray."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from phicourse.errors import QuantizeError
from phicourse.evaluate.trials import MixTrials
from phicourse.plots.sensitivity import draw_sensitivity
from phicourse.quantize.registry import supported_type
from phicourse.widgets.live import put_picture, show_picture

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K")
_LEAST = 1e-6  # nats: a logarithmic axis shows also what does no harm
_IN_LAYERS = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_UNITS = {False: "KL divergence", True: "KL divergence for each megabyte saved"}


class SensitivityMap:
    """Shows the harm that each matrix of a model does if only it is quantized.

    trials   makes and measures; what was measured once is remembered
    types    that one can choose, from many bits to few
    type     the one to begin with
    matrix   the one to look at first, such as "blk.0.attn_qkv.weight"; the first of the model when not given
    per_megabyte  whether harm is counted for each megabyte that it saves
    raises   QuantizeError where the model has no such matrix, or a type is not known

    Nothing is measured before it is looked at: a map is a trial for each matrix, a curve one for each type.
    Keys: Tab goes from slider to slider, left and right choose.
    """

    def __init__(
        self,
        trials: MixTrials,
        types: Sequence[str] = TYPES,
        type: str = "Q2_K",
        matrix: str = "",
        per_megabyte: bool = False,
    ) -> None:
        self.trials = trials
        self.type = supported_type(type).name
        self.types = tuple(dict.fromkeys((*(supported_type(each).name for each in types), self.type)))
        whole = trials.plan("F16")
        self.n_bytes = whole.nbytes  # of the model before
        self.matrices = _in_order(t.source.name for t in whole.tensors if len(t.source.shape) > 1)
        self.matrix = matrix or self.matrices[0]
        if self.matrix not in self.matrices:
            raise QuantizeError(f"sensitivity map: {matrix} is no matrix of {trials.source.name}")
        self.per_megabyte = per_megabyte
        self._measured: dict[tuple[str, str], tuple[float, float]] = {}  # (KL, megabytes saved)

    # ---- what is measured --------------------------------------------------------------------------------

    def measure(self, step: Callable[[int, int], None] = lambda done, all: None) -> None:
        """Measure what the picture needs and is not known yet.

        step  is told how many trials are done, and of how many
        """
        pairs = dict.fromkeys([(matrix, self.type) for matrix in self.matrices])
        pairs |= dict.fromkeys([(self.matrix, type) for type in self.types])
        missing = [pair for pair in pairs if pair not in self._measured]
        for done, pair in enumerate(missing, 1):
            trial = self.trials.measure_alone(*pair)
            saved = (self.n_bytes - trial.plan.nbytes) / 1e6
            self._measured[pair] = max(trial.divergence.mean, _LEAST), saved
            step(done, len(missing))

    def harm(self, matrix: str, type: str) -> float:
        """The harm of a matrix in a type, both of them measured: nats a token, or that for each megabyte."""
        divergence, saved = self._measured[matrix, type]
        return divergence / saved if self.per_megabyte else divergence

    def map(self) -> dict[str, NDArray[np.float64]]:
        """The harm of all matrices in the chosen type: kind of matrix -> (layers,)."""
        rows: dict[str, list[float]] = {}
        for matrix in self.matrices:
            rows.setdefault(_place_of(matrix)[0], []).append(self.harm(matrix, self.type))
        return {kind: np.array(row) for kind, row in rows.items()}

    # ---- how it looks ------------------------------------------------------------------------------------

    def static(self) -> Figure:
        """Draw the map of the chosen type, and the chosen matrix in all types."""
        self.measure()
        bits = [supported_type(type).bits_per_weight for type in self.types]
        curve = {
            type: (n_bits, self.harm(self.matrix, type))
            for type, n_bits in zip(self.types, bits, strict=True)
        }
        title = f"If only this matrix is {self.type}"
        return draw_sensitivity(
            self.map(), _place_of(self.matrix), curve, self.type, title, _UNITS[self.per_megabyte]
        )

    def says(self) -> str:
        """Say in one line what the chosen matrix does in the chosen type."""
        divergence, saved = self._measured[self.matrix, self.type]
        ours = self.harm(self.matrix, self.type)
        worse = sum(self.harm(matrix, self.type) > ours for matrix in self.matrices)
        return (
            f"{_short(self.matrix)} as {self.type}: KL {divergence:.2g} for {saved:.2f} MB saved, "
            f"{divergence / saved:.2g} for each; {worse} of {len(self.matrices) - 1} others are more fragile"
        )

    def live(self) -> Any:
        """Build the widget."""
        return _Bench(self).box

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        figure = self.static()
        return show_picture(f"SensitivityMap({self.says()})", figure, self.live)


class _Bench:
    """The sliders of one live map, and what they do."""

    def __init__(self, sensitivity: SensitivityMap) -> None:
        import ipywidgets

        self.map = sensitivity
        look: dict[str, Any] = {"layout": {"width": "420px"}, "style": {"description_width": "110px"}}
        look["continuous_update"] = False  # a step may need trials
        self.type = ipywidgets.SelectionSlider(
            options=sensitivity.types, value=sensitivity.type, description="this type", **look
        )
        self.matrix = ipywidgets.SelectionSlider(
            options=[(_short(name), name) for name in sensitivity.matrices],
            value=sensitivity.matrix,
            description="look at",
            **look,
        )
        self.unit = ipywidgets.SelectionSlider(
            options=[("matrix", False), ("megabyte saved", True)],
            value=sensitivity.per_megabyte,
            description="harm of each",
            **look,
        )
        self.progress = ipywidgets.IntProgress(description="measuring", layout={"visibility": "hidden"})
        self.says = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png")
        sliders = (self.type, self.matrix, self.unit)
        choices = ipywidgets.HBox([*sliders, self.progress], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([choices, self.says, self.picture])
        for slider in sliders:
            slider.observe(self.draw, names="value")
        self.draw()

    def draw(self, _: object = None) -> None:
        """Measure what was not measured yet, and show it."""
        self.map.type, self.map.matrix = self.type.value, self.matrix.value
        self.map.per_megabyte = self.unit.value
        self.map.measure(self._step)
        self.progress.layout.visibility = "hidden"
        put_picture(self.picture, self.map.static())
        self.says.value = f"<p>{self.map.says()}</p>"

    def _step(self, done: int, all: int) -> None:
        self.progress.max, self.progress.value = all, done
        self.progress.layout.visibility = "visible"


def _place_of(matrix: str) -> tuple[str, int]:
    """The kind of a matrix and its layer, 0 outside the layers."""
    found = _IN_LAYERS.fullmatch(matrix)
    return (found[2], int(found[1])) if found else (_short(matrix), 0)


def _short(matrix: str) -> str:
    return matrix.removesuffix(".weight")


def _in_order(matrices: Iterable[str]) -> list[str]:
    """Sort matrices as a token passes them: the embedding, the layers, what comes behind; as a map is read."""

    def key(matrix: str) -> tuple[int, str, int]:
        kind, layer = _place_of(matrix)
        return (1, kind, layer) if _IN_LAYERS.fullmatch(matrix) else (0 if "embd" in matrix else 2, kind, 0)

    return sorted(matrices, key=key)
