"""A mix of one's own: choose a type for each group of tensors, see the size, the loss and what the model writes."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from phicourse.errors import QuantizeError
from phicourse.evaluate.trials import MixTrials, Trial
from phicourse.plots.mixes import draw_design
from phicourse.quantize.plan import Plan, PlannedTensor
from phicourse.quantize.registry import supported_type
from phicourse.widgets.live import put_picture, show_picture

TYPES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "Q3_K", "Q2_K", "TQ1_0")
_REST = ".=f16"  # what is in no group
_LINE, _LINES = 125, 3  # of the text in the picture


class MixDesigner:
    """Shows what a mix costs and does.

    trials  makes and measures mixes
    groups  name -> regular expression; a matrix belongs to the first that is found in its name
    known   mixes to compare with; where each group has one type in such a mix, one can begin with it
    start   the mix to begin with, or a type for each group
    types   that one can choose
    raises  QuantizeError where the start leaves a group without a type, or with several

    Keys: Tab goes from slider to slider, left and right choose.
    """

    def __init__(
        self,
        trials: MixTrials,
        groups: Mapping[str, str],
        known: Sequence[str] = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"),
        start: str | Mapping[str, str] = "Q4_K_M",
        types: Sequence[str] = TYPES,
    ) -> None:
        self.trials = trials
        self.groups = dict(groups)
        self.types = tuple(types)
        self.known = tuple(known)
        self.presets = {mix: found for mix in known if (found := self._types_of(mix)) is not None}
        chosen = self._types_of(start) if isinstance(start, str) else start
        if chosen is None or chosen.keys() != self.groups.keys():
            raise QuantizeError(f"mix designer: {start} does not give each of the groups one type")
        self.chosen = {group: supported_type(chosen[group]).name for group in self.groups}

    def _types_of(self, mix: str) -> dict[str, str] | None:
        """Return the type of each group in a named mix; None where a group has several, or none."""
        found: dict[str, set[str]] = {group: set() for group in self.groups}
        for group, tensor in self._matrices(self.trials.plan(mix)):
            found[group].add(tensor.type.name)
        if any(len(types) != 1 for types in found.values()):
            return None
        return {group: types.pop() for group, types in found.items()}

    def _matrices(self, plan: Plan) -> Iterator[tuple[str, PlannedTensor]]:
        """Yield the matrices of all groups, each with its group."""
        for tensor in plan.tensors:
            found = (
                group for group, pattern in self.groups.items() if re.search(pattern, tensor.source.name)
            )
            if len(tensor.source.shape) > 1 and (group := next(found, None)) is not None:
                yield group, tensor

    @property
    def tensor_types(self) -> list[str]:
        """The mix, as `--tensor-type` takes it."""
        return [*(f"{self.groups[group]}={type.lower()}" for group, type in self.chosen.items()), _REST]

    def trial(self) -> Trial:
        """Make and measure the mix as it is chosen."""
        return self.trials.measure("Q8_0", self.tensor_types)

    def static(self) -> Figure:
        """Draw the mix: bars of its parts, its place among the known ones, its text."""
        trial = self.trial()
        sizes = dict.fromkeys(self.groups, 0)
        for group, tensor in self._matrices(trial.plan):
            sizes[group] += tensor.nbytes
        parts = [(group, self.chosen[group], n_bytes) for group, n_bytes in sizes.items()]
        known = {mix: _point(self.trials.measure(mix)) for mix in self.known}
        lines = textwrap.wrap(" ".join((self.trials.prompt + trial.text).split()), _LINE)[:_LINES]
        return draw_design(parts, known, _point(trial), "\n".join(lines))

    def says(self) -> str:
        """Say in one line what the mix costs."""
        return str(self.trial())

    def live(self) -> Any:
        """Build the widget."""
        return _Bench(self).box

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return show_picture(f"MixDesigner({self.says()})", self.static(), self.live)


class _Bench:
    """The sliders of one live designer, and what they do."""

    def __init__(self, designer: MixDesigner) -> None:
        import ipywidgets

        self.designer = designer
        # sliders and no drop-down lists: JupyterLab takes the up and down keys for itself
        look: dict[str, Any] = {"layout": {"width": "420px"}, "style": {"description_width": "180px"}}
        look["continuous_update"] = False  # a trial takes a second
        self.sliders = {
            group: ipywidgets.SelectionSlider(
                options=_with(designer.types, type), value=type, description=group, **look
            )
            for group, type in designer.chosen.items()
        }
        self.preset = ipywidgets.SelectionSlider(
            options=["yours", *designer.presets], value="yours", description="begin with", **look
        )
        self.says = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png")
        choices = ipywidgets.HBox([*self.sliders.values(), self.preset], layout={"flex_flow": "row wrap"})
        self.box = ipywidgets.VBox([choices, self.says, self.picture])
        self.busy = False  # while a mix moves all sliders, it is not measured after each of them
        for each in self.sliders.values():
            each.observe(self._on_choice, names="value")
        self.preset.observe(self._on_preset, names="value")
        self.draw()

    def _on_choice(self, _: object) -> None:
        if not self.busy:
            self.preset.value = "yours"
            self.draw()

    def _on_preset(self, change: dict[str, Any]) -> None:
        types = self.designer.presets.get(change["new"])
        if types is None:
            return
        self.busy = True
        for group, type in types.items():
            self.sliders[group].options = _with(self.sliders[group].options, type)
            self.sliders[group].value = type
        self.busy = False
        self.draw()

    def draw(self) -> None:
        """Measure what is chosen and show it."""
        self.designer.chosen = {group: each.value for group, each in self.sliders.items()}
        put_picture(self.picture, self.designer.static())
        self.says.value = f"<p>{self.designer.says()}</p>"


def _with(types: Sequence[str], type: str) -> list[str]:
    """The types, and one more if it is not among them."""
    return list(dict.fromkeys((*types, type)))


def _point(trial: Trial) -> tuple[float, float]:
    """Megabytes and KL divergence, which a logarithmic axis can show also where it is nothing."""
    return trial.plan.nbytes / 1e6, max(trial.divergence.mean, 1e-6)
