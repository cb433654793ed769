"""``--target-sparsity`` as most people want it: every recipe is tried on a part of the samples, and the best one makes the model.

The first 80 % of the states' samples fit, the last 20 % judge, by how often the sparse model decides as the network does (or by labels);
the recipe that is chosen then fits on all samples. ``--max-accuracy-drop`` looks for the largest sparsity that the judging samples allow.

    RUN/validation/NAME/    a run of each recipe, gone once the choice is made          RUN/recipe.json    scores, and the choice
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

from simtool.engines import BATCH, EngineOptions
from simtool.engines.shards import write_bytes
from simtool.errors import FormatError, InputError, OptionError, SpecChanged
from simtool.networks import NetworkSpec
from simtool.progress import NO_PROGRESS, Progress
from simtool.stages.evaluate.metrics import CLASSIFICATION, decide_task
from simtool.stages.evaluate.sparse_network import load_runnable
from simtool.stages.sparsify import sequential, stage
from simtool.stages.sparsify.folder import RECIPE, VALIDATION, RunFolder, changed
from simtool.stages.sparsify.options import SparsifyOptions
from simtool.stages.sparsify.spec import is_tied
from simtool.stages.sparsify.structure import row_groups
from simtool.states import States, open_states

_log = logging.getLogger("simtool")
AUTO = "auto"
# From the cheapest on: of recipes that judge alike the first is taken.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "sequential": {"sequential": True},
    "gate": {"sequential": True, "weight_samples": "gate"},
    "fisher": {"sequential": True, "weight_samples": "fisher"},
}
AGREEMENT, LABELS = "agreement", "labels"
VALIDATE = (AGREEMENT, LABELS)
_FIT_SHARE, _LEAST_JUDGES = 0.8, 20
# The search for a sparsity: non-zeros are known to this factor in the end; the densest and the sparsest that are tried.
_FACTOR, _DENSEST, _SPARSEST, _FIRST = 1.03, 1.0, 0.002, 0.9
_VERSION = 1


@dataclass(frozen=True)
class Wish:
    """How a budget is to be spent.

    Attributes
    ----------
    recipe : a name of RECIPES, or ``auto`` for the one that does best on samples it was not fitted on; what the options ask for stays
    max_accuracy_drop : in place of a size, what may be lost on these samples, a fraction; None for a size
    validate : what is judged by: ``agreement`` with the network, or the file's ``labels``
    """

    recipe: str = AUTO
    max_accuracy_drop: float | None = None
    validate: str = AGREEMENT

    def __post_init__(self) -> None:
        if self.recipe not in (AUTO, *RECIPES):
            raise OptionError(f"--recipe must be one of {AUTO}, {', '.join(RECIPES)}, got {self.recipe!r}.")
        if self.validate not in VALIDATE:
            raise OptionError(f"--validate must be one of {', '.join(VALIDATE)}, got {self.validate!r}.")
        drop = self.max_accuracy_drop
        if drop is not None and not 0.0 <= drop < 1.0:
            raise OptionError(
                f"--max-accuracy-drop must lie in [0, 1), got {drop!r}: .005 allows half a point in a hundred."
            )


def sparsify(
    states: str | Path,
    output: str | Path,
    options: SparsifyOptions | None = None,
    *,
    wish: Wish | None = None,
    engine: str | EngineOptions = "process",
    workers: int | None = None,
    network: NetworkSpec | None = None,
    allow_mixed: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Solve every row of the states file and write the sparse implicit model; a budget is spent by the recipe that does best.

    Parameters, result and errors are those of :func:`simtool.stages.sparsify.stage.sparsify`, and ``wish``. Where a recipe
    was chosen the result has two keys more: recipe, its name, and validation, the score of each recipe (a fraction).
    """
    asked, wish = options or SparsifyOptions(), wish or Wish()
    where = engine if isinstance(engine, EngineOptions) else EngineOptions(engine, workers)
    call: dict[str, Any] = {
        **{"engine": where, "network": network, "allow_mixed": allow_mixed, "progress": progress}
    }
    asked = _checked(asked, wish)
    if not asked.has_budget and wish.max_accuracy_drop is None:
        return stage.sparsify(states, output, asked, **call)
    with open_states(Path(states)) as source:
        search = _Search(source, Path(output), asked, wish, call)
        found = search.choice()
    final = replace(asked, **RECIPES[found["recipe"]], **found["size"])
    result = stage.sparsify(states, output, final, **call)
    return {**result, "recipe": found["recipe"], "validation": found["scores"]} if found["scores"] else result


def _checked(options: SparsifyOptions, wish: Wish) -> SparsifyOptions:
    """``options``, refused where they do not go with ``wish``."""
    refuse_other_weights(wish.recipe, options)
    if wish.recipe == "plain" and (options.sequential or options.weighs_rows):
        other = "--sequential" if options.sequential else f"--weight-samples {options.weight_samples}"
        raise OptionError(f"--recipe plain is without {other}. Leave one of them out.")
    if wish.max_accuracy_drop is not None:
        if options.target_sparsity is not None or options.target_nnz is not None:
            raise OptionError(
                "--max-accuracy-drop looks for the size that --target-sparsity and --target-nnz give. Leave one of them out."
            )
        replace(
            options, target_sparsity=0.0, **_recipe_options(wish)
        )  # whatever is wrong with it is said now
        return options
    given = "" if wish.recipe == AUTO else f"--recipe {wish.recipe}"
    if wish.validate != AGREEMENT:
        given = given or f"--validate {wish.validate}"
    if given and not options.has_budget:
        raise OptionError(
            f"{given} belongs to a budget of non-zeros. Pass --target-sparsity S, --target-nnz N or --max-accuracy-drop D."
        )
    return options


def refuse_other_weights(recipe: str, options: SparsifyOptions) -> None:
    """Raise OptionError where ``recipe`` weighs samples, and ``options`` ask for other weights."""
    own = RECIPES.get(recipe, {}).get("weight_samples")
    if own is not None and options.weight_samples not in (None, own):
        raise OptionError(
            f"--recipe {recipe} weighs samples itself, and --weight-samples {options.weight_samples} asks for other weights. Leave one of "
            "them out."
        )


def _recipe_options(wish: Wish) -> dict[str, Any]:
    return {} if wish.recipe == AUTO else RECIPES[wish.recipe]


def _best(judged: Mapping[str, tuple[float, float]], judges: int) -> str:
    """The recipe whose outputs are nearest, among those within a standard error of the best score.

    So few samples tell scores apart no better than that; the outputs say more. Of equals the first, which is the cheapest.
    """
    top = max(score for score, _ in judged.values())
    error = math.sqrt(max(0.0, top * (1.0 - top)) / judges)
    return min((name for name in judged if judged[name][0] >= top - error), key=lambda name: judged[name][1])


def _is_cyclic(source: States, structure: str) -> bool:
    """Whether there is no order of layers to fit one after the other."""
    header = source.header
    groups = row_groups(structure, header.blocks, header.output_parents, source.p, source.q, header.has_bias)
    try:
        sequential.depths(groups, source.n)
    except OptionError:
        return True
    return False


def _distance(y: np.ndarray, teacher: np.ndarray, classes: bool) -> float:
    """How far outputs (q, k) are from the network's: the mean Kullback-Leibler divergence of their softmax; squares where they are no classes."""
    if not classes:
        return float(np.square(y - teacher).mean())
    log_p, log_q = (values - logsumexp(values, axis=0) for values in (teacher, y))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=0).mean())


class _Search:
    """The choice of a recipe, and of a size where that is wanted."""

    def __init__(
        self, source: States, output: Path, options: SparsifyOptions, wish: Wish, call: Mapping[str, Any]
    ) -> None:
        self._source, self._folder, self._call = source, RunFolder(output), call
        self._options, self._wish = options, wish
        self._fit = math.floor(_FIT_SHARE * source.m)
        task = decide_task(source.labels, source.q, source.header.output_map)
        self._classes = task == CLASSIFICATION and source.q > 1

    def choice(self) -> dict[str, Any]:
        """``recipe``, ``size`` (options more), ``scores``: as an earlier call left it, or found now."""
        names = self._names()
        seeks_size = self._wish.max_accuracy_drop is not None
        stored = self._read()
        if stored is not None:
            self._clear()  # an earlier call may have ended between writing the choice and this
            return stored
        judges = self._source.m - self._fit
        if judges < _LEAST_JUDGES and (seeks_size or len(names) > 1):
            if seeks_size:
                raise InputError(
                    f"--max-accuracy-drop is judged on the last fifth of the samples, here {judges} of {self._source.m}; at least "
                    f"{_LEAST_JUDGES} are needed. Extract more samples, or name a size by --target-sparsity."
                )
            _log.info(
                "%d samples are too few to choose a recipe by: the rows are fitted as --recipe %s",
                self._source.m,
                names[0],
            )
            names = names[:1]
        if len(names) == 1 and not seeks_size:
            return {"recipe": names[0], "size": {}, "scores": {}}
        where: EngineOptions = self._call["engine"]
        if where.name in BATCH and not where.wait:
            raise OptionError(
                f"choosing the recipe{' and the size' if seeks_size else ''} takes several runs, one after another: with --engine {where.name} "
                f"add --wait{'' if seeks_size else ', or name a recipe: --recipe ' + names[-1]}."
            )
        if self._folder.spec.exists():
            raise SpecChanged(changed(self._folder.path, "recipe", "one by its name", self._wish.recipe))
        if self._wish.validate == LABELS:
            self._labels()  # what they lack is said before any work
        with self._held():
            size: dict[str, Any] = {}
            first = {"target_sparsity": _FIRST} if seeks_size else {}
            judged = {name: self._score(name, first) for name in names}
            scores = {name: score for name, (score, _) in judged.items()}
            best = _best(judged, judges)
            if seeks_size:
                size, score = self._largest(best)
                _log.info(
                    "target sparsity %s: %.2f%% %s", size["target_sparsity"], 100 * score, self._wish.validate
                )
            _log.info(
                "recipe %s: %s on the %d samples kept back (%s)",
                best,
                f"{scores[best]:.2%} {self._wish.validate}",
                judges,
                ", ".join(f"{name} {score:.2%}" for name, score in scores.items()),
            )
            found = {"recipe": best, "size": size, "scores": scores}
            self._write(found)
        return found

    def _names(self) -> list[str]:
        """The recipes that can be tried; what the options ask for already is part of each."""
        if self._wish.recipe != AUTO:
            return [self._wish.recipe]
        options, header = self._options, self._source.header
        tied = is_tied(header, options)
        # Behind sparse layers the network itself runs, which no batch system does.
        layers = self._call["network"] is not None and self._call["engine"].name not in BATCH
        runs = options.structure != "free" and (not tied or layers)
        weighted = not tied and options.pattern is None and options.paths in (None, "elimination")
        weighted &= options.anchor is None
        if options.sequential or options.weight_samples is not None:
            return ["plain"]
        if tied and not layers:
            _log.info(
                "rows are fitted on the network's own states: to fit layer by layer behind sparse ones too, and choose, pass --network NETWORK"
            )
        if not runs or (not tied and _is_cyclic(self._source, options.structure)):
            return ["plain"]
        return [
            "plain",
            "sequential",
            *(["gate"] if weighted else []),
            *(["fisher"] if weighted and header.whole and self._classes else []),
        ]

    # --- scores -----------------------------------------------------------------------------------------------------------

    def _score(self, name: str, size: Mapping[str, Any]) -> tuple[float, float]:
        """How the model of recipe ``name`` does on the samples that it was not fitted on, and how far its outputs are off."""
        _log.info(
            "recipe %s%s, fitted on %d of %d samples",
            name,
            "".join(f" at {value}" for value in size.values()),
            self._fit,
            self._source.m,
        )
        label = name + "".join(f"-{value}" for value in size.values())
        place = self._folder.path / VALIDATION / label
        self._folder.path.mkdir(parents=True, exist_ok=True)
        place.parent.mkdir(exist_ok=True)
        options = replace(self._options, **RECIPES[name], **size)
        # Where a run of a recipe stops, it goes on: it is a run like any other.
        stage.sparsify(self._source.path, place, options, samples=self._fit, **self._call)
        model = load_runnable(place, self._call["network"])
        u = np.asarray(self._source.U[:, self._fit :], dtype=np.float64)
        outputs = np.asarray(self._source.Y[:, self._fit :], dtype=np.float64)
        y = model.forward(u).Y
        return self._judged(y, outputs), _distance(y, outputs, self._classes)

    def _judged(self, y: np.ndarray, teacher: np.ndarray) -> float:
        if self._wish.validate == LABELS:
            return float((y.argmax(axis=0) == self._labels()).mean())
        if self._classes:
            return float((y.argmax(axis=0) == teacher.argmax(axis=0)).mean())
        # Nothing is decided: how much of the outputs' variance is explained.
        spread = float(np.square(teacher - teacher.mean(axis=1, keepdims=True)).sum())
        return 1.0 - float(np.square(y - teacher).sum()) / max(spread, 1e-300)

    def _labels(self) -> np.ndarray:
        labels = self._source.labels
        if self._source.q < 2:
            raise OptionError(
                f"--validate labels counts classes, but the network of {self._source.path} has one output. Leave it out to judge by agreement."
            )
        if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise OptionError(
                f"--validate labels needs a class for each sample, but {self._source.path} holds "
                f"{'no labels' if labels is None else f'labels {labels.dtype} of shape {labels.shape}'}. Leave it out to judge by agreement."
            )
        return labels[self._fit :]

    def _largest(self, name: str) -> tuple[dict[str, Any], float]:
        """The options of the largest sparsity at which recipe ``name`` loses no more than is allowed, and its score there."""
        baseline = self._source.header.baseline_nnz
        if not baseline:
            raise OptionError(
                "--max-accuracy-drop counts against the network's own parameters, which these states do not know. Use --target-nnz N."
            )
        teacher = np.asarray(self._source.Y[:, self._fit :], dtype=np.float64)
        least = self._judged(teacher, teacher) - float(self._wish.max_accuracy_drop or 0.0)
        carried = self._source.header.carried_nnz if is_tied(self._source.header, self._options) else 0
        low, high = max(_SPARSEST, (carried + 1) / baseline), _DENSEST  # shares that stay: too few, enough
        dense, _ = self._score(name, {"target_sparsity": 0.0})
        if dense < least:
            raise InputError(
                f"the fitted model without any sparsity reaches {dense:.4f} {self._wish.validate} on the samples kept back, and "
                f"{least:.4f} are asked for. Allow a larger --max-accuracy-drop, or extract more samples."
            )
        reached = dense
        while high / low > _FACTOR:
            middle = math.sqrt(low * high)
            sparsity = round(1.0 - middle, 4)
            score, _ = self._score(name, {"target_sparsity": sparsity})
            if score >= least:
                high, reached = middle, score
            else:
                low = middle
        return {"target_sparsity": round(1.0 - high, 4) if high < _DENSEST else 0.0}, reached

    # --- what is left on the disk -----------------------------------------------------------------------------------------

    def _asked(self) -> dict[str, Any]:
        return {
            "format_version": _VERSION,
            "options": asdict(self._options),
            "wish": asdict(self._wish),
            "states": self._source.content_sha256(),
        }

    def _read(self) -> dict[str, Any] | None:
        """The choice of an earlier call for the same. Raises SpecChanged for another, FormatError."""
        path = self._folder.path / RECIPE
        try:
            content = json.loads(path.read_bytes())
            asked = {key: content[key] for key in self._asked()}
            found = {key: content[key] for key in ("recipe", "size", "scores")}
            if found["recipe"] not in RECIPES or not {*found["size"]} <= {"target_sparsity"}:
                raise ValueError("the choice is none of this version")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} cannot be read ({error}). Start again in a new folder.") from error
        now = json.loads(json.dumps(self._asked()))
        for key, old in asked.items():
            if isinstance(old, dict) and old != now[key]:
                field = next(k for k in {**old, **now[key]} if old.get(k) != now[key].get(k))
                raise SpecChanged(
                    changed(self._folder.path, f"{key}.{field}", old.get(field), now[key].get(field))
                )
            if old != now[key]:
                raise SpecChanged(changed(self._folder.path, key, old, now[key]))
        return found

    def _write(self, found: Mapping[str, Any]) -> None:
        text = json.dumps({**self._asked(), **found}, indent=2, sort_keys=True) + "\n"
        write_bytes(self._folder.path / RECIPE, text.encode())
        self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self._folder.path / VALIDATION, ignore_errors=True)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the run's folder; nobody else may choose meanwhile."""
        self._folder.prepare()
        with self._folder.locked():
            yield
