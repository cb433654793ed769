"""What the spec of a run says is to be done: its groups of rows, shards, Gram tiles, and in which order."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from simtool.blocks import Block, check, from_json
from simtool.errors import FormatError
from simtool.layers import from_json as layers_from_json
from simtool.solvers import regime
from simtool.stages.sparsify import constraints, sequential
from simtool.stages.sparsify.answer import Task
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.options import SparsifyOptions, objective_of
from simtool.stages.sparsify.structure import (
    FULL,
    Bank,
    RowGroup,
    Shard,
    gram_features,
    gram_tiles,
    layer_groups,
    row_groups,
    shards,
)

# States, inputs or outputs of a run; a spec that claims more is damaged, and believing it takes all memory.
_MOST = 2**24


class Plan:
    """What spec.json says is to be done: the groups, shards and Gram tiles of a run."""

    def __init__(self, spec: dict[str, Any]) -> None:
        try:
            self._read(spec)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, MemoryError) as error:
            raise FormatError(
                f"spec.json is damaged ({type(error).__name__}: {error}). Start again in a new folder."
            ) from error

    def _read(self, spec: dict[str, Any]) -> None:
        sizes = spec["sizes"]
        self.n, self.p, self.q, self.m = (int(sizes[key]) for key in ("n", "p", "q", "m"))
        if min(self.p, self.q, self.m) < 1 or max(self.n, self.p, self.q) > _MOST:
            raise ValueError(f"the sizes {sizes} are not in 1..{_MOST}")
        self.has_bias = bool(spec["has_bias"])
        self.options = SparsifyOptions(**spec["options"])
        # Only a run whose rows are those of layers has this section.
        self.layers = layers_from_json(spec.get("layers", []))
        self.blocks: tuple[Block, ...] = ()
        if self.layers:
            self.groups, self.banks = layer_groups(self.layers, self.options.anchor is not None)
        else:
            self.blocks = from_json(spec["blocks"])
            check(self.blocks, self.n, spec["output_parents"])
            self.groups = row_groups(
                self.options.structure,
                self.blocks,
                spec["output_parents"],
                self.p,
                self.q,
                self.has_bias,
            )
            samples = self.m + (0 if self.options.anchor is None else self.n + self.p)
            whole = Bank("design", "targets", (0, self.n + self.p), (0, self.n + self.q), samples)
            self.banks = (whole,)
        self.budget: int | None = int(spec["budget"]["nnz"]) if "budget" in spec else None
        self.depths = self._depths()
        self._is_state, self._is_bias = self._kinds()
        # Only a run with an objective of the user's own has this section.
        self._source_sha256 = spec.get("objective", {}).get("source_sha256")
        self.shards: tuple[Shard, ...] = shards(self.groups, [bank.samples for bank in self.banks])
        wanting = [g for g in self.groups if self._wants_gram(g)]
        self.grams = gram_features(wanting, self.features)
        self.gram_banks = {group.gram: group.bank for group in wanting}
        self.tiles = gram_tiles({name: features.size for name, features in self.grams.items()})

    @property
    def features(self) -> int:
        """Of all designs together: n + p where there is one."""
        return self.banks[-1].features[1]

    @property
    def rows(self) -> int:
        """Of all together: n + q, or those of the layers."""
        return self.banks[-1].rows[1]

    def _depths(self) -> tuple[int, ...]:
        """Of each group: 0, but with --sequential."""
        if not self.options.sequential:
            return (0,) * len(self.groups)
        if self.layers:
            return sequential.layer_depths(self.groups, [layer.reads_input for layer in self.layers])
        return sequential.depths(self.groups, self.n)

    def at_depth(self, depth: int) -> list[int]:
        """The groups of ``depth``."""
        return [index for index, own in enumerate(self.depths) if own == depth]

    def samples(self, group: RowGroup) -> int:
        """Samples of the group's rows."""
        return self.banks[group.bank].samples

    def _kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Which features are states (the rest are inputs and the bias), and which are the constant 1: (features,) bool each."""
        is_state, is_bias = (np.zeros(self.features, dtype=bool) for _ in range(2))
        if not self.layers:
            is_state[: self.n] = True
            is_bias[-1] = self.has_bias
        for layer, bank in zip(self.layers, self.banks, strict=False):
            start, stop = bank.features
            is_state[start : stop - int(layer.has_bias)] = not layer.reads_input
            is_bias[stop - 1] = layer.has_bias
        return is_state, is_bias

    def bounded(self, group: RowGroup) -> np.ndarray:
        """The set S among the group's features, (d,) bool."""
        if self.options.kappa_on == "a":
            return self._is_state[group.features]
        return np.ones(group.features.size, dtype=bool)

    def allowed(self, group: RowGroup, rows: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray | None:
        """The features that each of ``rows`` may use, (r, d) bool; None for all of the group's. ``mask`` is --mask."""
        allowed = None if mask is None else mask[np.ix_(rows, group.features)]
        if group.excludes_itself:
            others = group.features != rows[:, None]
            allowed = others if allowed is None else allowed & others
        return allowed

    def bounds(self, group: RowGroup) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Bounds of the coefficients, lower and upper (d,), or None for none."""
        return constraints.bounds(self.options.sign, self.options.box, self._is_bias[group.features])

    def is_bias(self, group: RowGroup) -> np.ndarray:
        """Which of the group's features are the constant 1, (d,) bool."""
        return np.asarray(self._is_bias[group.features])

    def smooth(self, group: RowGroup) -> np.ndarray:
        """Features (d,) bool that only a mask can make zero: see :class:`simtool.problem.RowSet`."""
        objective = objective_of(self.options, group.is_output, self.samples(group))
        smooth = np.full(group.features.size, objective.penalty.slope == 0.0)
        if objective.kappa is not None:
            smooth &= ~self.bounded(group)
        for bound in self.bounds(group):
            if bound is not None:
                smooth &= ~np.isfinite(bound)
        return smooth

    @property
    def has_constraints_file(self) -> bool:
        """Whether the run folder holds a mask or sample weights."""
        return self.options.mask is not None or self.options.weights_file

    def task(self, group: RowGroup) -> Task:
        """What is asked of the group's rows."""
        options = self.options
        return Task(
            objective=options.objective,
            source_sha256=self._source_sha256,
            match=options.match,
            solver=options.solver or "native",
            tolerance=options.tol,
            states=int(self._is_state[group.features].sum()),
        )

    def _wants_gram(self, group: RowGroup) -> bool:
        """Whether the group's rows are solved on a Gram matrix: natively, and where that pays."""
        if self.options.solver != "native":
            return False
        if self.budget is not None:
            return True  # paths are found on it
        sharing = sum(g.rows[1] - g.rows[0] for g in self.groups if g.gram == group.gram)
        d = self.features if group.gram == FULL else group.features.size
        return regime.gram_pays(d, self.samples(group), sharing)


@functools.lru_cache(maxsize=4)
def _plan(path: Path, content: bytes) -> Plan:
    del content  # part of the key: another spec at the same path is another plan, whatever a clock says of it
    return Plan(RunFolder(path).read_spec())


def plan_of(folder: RunFolder) -> Plan:
    """The plan of a run folder, made once per process. Raises InputError if it has no spec."""
    try:
        return _plan(folder.path, folder.spec.read_bytes())
    except OSError:
        return Plan(folder.read_spec())  # says what is wrong
