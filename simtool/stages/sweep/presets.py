"""The grids of the papers, as data with their source: what is printed there, and what is ours where nothing is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simtool.errors import OptionError
from simtool.stages.sweep.grid import Axis, Grid, option_of


@dataclass(frozen=True)
class Preset:
    """A named set of grids.

    Attributes
    ----------
    title : what it reproduces
    source : where its values come from, and which of them are ours
    grids : (options that differ from their defaults, axis -> values) of each grid
    attack : options of :class:`~simtool.stages.sweep.points.Measure` that the figure needs; used where there are data to measure on
    """

    title: str
    source: str
    grids: tuple[tuple[dict[str, Any], dict[str, tuple[float, ...]]], ...]
    attack: dict[str, Any] | None = None


_THESIS_KAPPAS = (0.005, 0.01, 0.05, 0.1, 0.5, 0.99)
_DECADES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
_WELL_POSED = (
    "The paper's kappa = .99 makes rows of any structure well-posed; layered rows are without it. For the paper's own rows add "
    "--structure free, on states extracted with --rescale."
)

PRESETS: dict[str, Preset] = {
    "thesis-3.1": Preset(
        "Thesis, Table 3.1: accuracy and sparsity against kappa",
        "The six values of kappa as printed, in a lasso with ||(a, b)||_1 <= kappa. The thesis's networks are ResNet-20 on CIFAR-100 and "
        "DistilBERT on 20NewsGroup. One kappa for rows of all norms is a poor dial: add --kappa-relative for the same values in units "
        "of each row.",
        (({"objective": "lasso"}, {"kappa": _THESIS_KAPPAS}),),
    ),
    "thesis-3.6": Preset(
        "Thesis, Figures 3.6 and 3.7: accuracy against samples, per kappa",
        "kappa of Table 3.3 as printed; the figures' numbers of samples are not printed: ours.",
        (({"objective": "lasso"}, {"kappa": (0.1, 0.5, 0.99), "samples": (100, 200, 400, 700, 1000)}),),
    ),
    "sim-2": Preset(
        "SIM, Figure 2: accuracy drop against sparsity, perspective and l1",
        "lambda1 = lambda2 = .1 as printed (SIM 4.1). The figure's own values of alpha and beta are not printed: ours, half decades around "
        f"the printed alpha = 1e-3. {_WELL_POSED}",
        (
            ({"objective": "perspective"}, {"alpha": _DECADES}),
            ({"objective": "l1"}, {"beta": _DECADES}),
        ),
    ),
    "sim-3": Preset(
        "SIM, Figure 3: sparsity against samples, perspective and l1",
        "Samples, lambda and alpha of SIM's Table 2 as printed; beta = .02, the equal of alpha = .01 where |w| <= 1, is ours (Table 3 cannot "
        f"be read with certainty). {_WELL_POSED}",
        (
            ({"objective": "perspective", "alpha": 0.01}, {"samples": (100, 200, 300, 400, 500, 700)}),
            ({"objective": "l1", "beta": 0.02}, {"samples": (100, 200, 300, 400, 500, 700)}),
        ),
    ),
    "sim-4": Preset(
        "SIM, Figure 4: robust accuracy against sparsity, perspective and l1",
        "Attack as printed: FGSM of epsilon .004 and .008 on half of the pixels, along the sign of the baseline's gradient. The values of alpha "
        f"and beta are ours, as for Figure 2. {_WELL_POSED}",
        (
            ({"objective": "perspective"}, {"alpha": _DECADES}),
            ({"objective": "l1"}, {"beta": _DECADES}),
        ),
        {"attack": "fgsm", "epsilons": ("0.004", "0.008"), "fraction": 0.5, "gradient": "baseline"},
    ),
}


def grids_of(name: str, fixed: Mapping[str, Any], axes: Sequence[Axis]) -> tuple[Grid, ...]:
    """The grids of preset ``name`` on top of ``fixed`` options; ``axes`` replace those of the preset, or multiply them.

    Raises OptionError for a name that is none, and for options that the preset sets itself.
    """
    if name not in PRESETS:
        raise OptionError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}.")
    given = {axis.name: axis for axis in axes}
    swept = {key for _, values in PRESETS[name].grids for key in values}
    found = []
    for changes, values in PRESETS[name].grids:
        twice = next((key for key in changes if key in fixed or key in given), None)
        if twice is not None:
            raise OptionError(f"--preset {name} sets {option_of(twice)} itself. Leave one of them out.")
        own = [given.get(key, Axis.of(key, numbers)) for key, numbers in values.items()]
        own += [axis for key, axis in given.items() if key not in swept]
        found.append(Grid({**fixed, **changes}, tuple(own)))
    return tuple(found)
