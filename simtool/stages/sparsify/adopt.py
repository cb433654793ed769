"""What one run folder may take over from another on the same states: inputs, Gram matrices, the paths of its rows.

Arrays are linked where the file system can (they are never changed in place: whoever writes one writes another file), and
counted as there only with the checksums that they were sealed with. Nothing is taken whose numbers could differ by a bit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from simtool.budget.elimination import ALL_FEATURES
from simtool.errors import FormatError
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.paths import path_file
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.work import gram_array
from simtool.temporary import beside

# Of coefficients, not of the supports that paths offer them.
_NO_MATTER = (
    *("target_sparsity", "target_nnz", "sequential", "tol"),
    *("kappa", "kappa_on", "kappa_outputs", "kappa_relative"),
)


def adopt(folder: RunFolder, plan: Plan, other: RunFolder, other_plan: Plan) -> list[str]:
    """Take what ``folder`` lacks from ``other``; both have their specs. Returns the names of what was taken.

    Nothing is taken from a run on other states, with other sample weights or anchors, or from another environment.
    """
    if not _same_inputs(folder, plan, other, other_plan):
        return []
    taken = []
    folder.work.mkdir(parents=True, exist_ok=True)
    for bank, theirs in zip(plan.banks, other_plan.banks, strict=True):
        for name, source in ((bank.design, theirs.design), (bank.targets, theirs.targets)):
            if not folder.array(name).exists() and other.array(source).exists():
                _link(other.array(source), folder.array(name))
                taken.append(name)
    for name in sorted(set(plan.grams) & set(other_plan.grams)):
        if plan.gram_banks[name] != other_plan.gram_banks[name]:
            continue
        if not np.array_equal(plan.grams[name], other_plan.grams[name]):
            continue
        ours, source = gram_array(plan, name), gram_array(other_plan, name)
        if not folder.is_sealed(ours) and other.is_sealed(source):
            _link(other.array(source), folder.array(ours))
            folder.seal(ours)
            taken.append(ours)
    return taken + _paths(folder, plan, other, other_plan)


def share_paths(plan: Plan, other: Plan) -> bool:
    """Whether the rows of two runs on the same inputs have the same paths: looked for in the same way, and of the same budget, since
    paths over many features start where that says."""
    if plan.budget is None or other.budget is None:
        return False
    first, second = asdict(plan.options), asdict(other.options)
    if any(first[key] != second[key] for key in first if key not in _NO_MATTER):
        return False
    all_features = all(group.features.size <= ALL_FEATURES for group in plan.groups)
    return plan.budget == other.budget or (plan.options.paths is None and all_features)


def _same_inputs(folder: RunFolder, plan: Plan, other: RunFolder, other_plan: Plan) -> bool:
    spec, theirs = folder.read_spec(), other.read_spec()
    if any(spec[key] != theirs[key] for key in ("states", "sizes", "environment")):
        return False
    if spec.get("layers") != theirs.get("layers") or plan.banks != other_plan.banks:
        return False
    return (plan.options.weight_samples, plan.options.anchor) == (
        other_plan.options.weight_samples,
        other_plan.options.anchor,
    )


def _paths(folder: RunFolder, plan: Plan, other: RunFolder, other_plan: Plan) -> list[str]:
    """Paths belong to one run by its spec: they are read as the other's, and stored as this one's."""
    if not share_paths(plan, other_plan):
        return []
    taken = []
    for index in range(len(plan.shards)):
        ours, theirs = path_file(folder, index), path_file(other, index)
        if folder.holds(ours):
            continue
        with contextlib.suppress(FormatError, OSError):  # not there, or damaged: found anew
            folder.store(ours, other.load(theirs))
            taken.append(ours.name)
    return taken


def _link(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target`` too, or copy it where the file system has no links."""
    temporary = beside(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
