"""What defines the answer of a run: its spec, from the states and the options."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from simtool import environment
from simtool.blocks import lipschitz, to_json
from simtool.errors import InputError, OptionError
from simtool.stages.sparsify import budget, constraints, elimination, sample_weights
from simtool.stages.sparsify.anchor import require_teacher
from simtool.stages.sparsify.folder import SPEC_VERSION
from simtool.stages.sparsify.options import SparsifyOptions, resolve
from simtool.states import States, StatesHeader

# In a spec only where they are used: specs written before these were known stay the same.
_LATER_OPTIONS = (
    *("untied", "target_sparsity", "target_nnz", "anchor"),
    *("paths", "pattern", "sequential", "kappa_relative"),
)


def constraints_asked(
    source: States, options: SparsifyOptions
) -> tuple[constraints.Constraints, SparsifyOptions]:
    """The mask and sample weights that ``options`` name by their files, and options that name them by content."""
    header = source.header
    if is_tied(header, options):
        _require_plain(options, header)
        return constraints.NONE, options
    if options.anchor is not None:
        require_teacher(source, options.anchor, options.weight_samples)
    if not header.states:
        raise InputError(
            f"{source.path} holds the columns of layers alone, no states, which --structure {options.structure}"
            f"{' --untied' if options.untied else ''} needs. Extract again with --blocks '*' or the blocks that shall take part, or use "
            "--structure layered."
        )
    if options.structure == "layered" and not header.whole:
        raise InputError(
            f"{source.path} holds the states of some blocks only, and rows of --structure layered may need others. Extract again "
            "without --blocks, or use --structure dag or free."
        )
    rows, features = header.states + header.outputs, header.states + header.inputs
    sample_weights.require_operators(source, options.weight_samples)
    own = options.weight_samples if options.weights_file else None
    asked = constraints.read(options.mask, own, rows, features, header.samples)
    weights = asked.weights_sha256 if options.weights_file else options.weight_samples
    return asked, replace(options, mask=asked.mask_sha256, weight_samples=weights)


def is_tied(header: StatesHeader, options: SparsifyOptions) -> bool:
    """Whether rows are those of the network's layers, their weights shared over positions."""
    return bool(header.layers) and options.structure == "layered" and not options.untied


def _require_plain(options: SparsifyOptions, header: StatesHeader) -> None:
    """Refuse what is asked of states, not of layers."""
    asked = {
        "--mask": options.mask,
        "--weight-samples": options.weight_samples,
        "--eliminate": None if options.eliminate == "none" else options.eliminate,
    }
    for option, value in asked.items():
        if value is not None:
            raise OptionError(
                f"{option} {value} counts by states and samples; the rows of this network are those of layers whose weights are shared over "
                f"positions. Leave it out{', or add --untied for rows of single states' if header.whole else ''}."
            )


def make_spec(source: States, options: SparsifyOptions) -> dict[str, Any]:
    """Everything that defines the answer."""
    header = source.header
    tied = is_tied(header, options)
    elimination.check_features(options.features, header.states, header.inputs, header.has_bias)
    largest = float(lipschitz(header.blocks).max(initial=1e-12))
    resolved = resolve(options, largest)
    own: dict[str, Any] = {}
    if tied:
        own["layers"] = [layer.to_json() for layer in header.layers]
    wanted = budget.spec_of(options, header, tied)
    if wanted is not None:
        own["budget"] = wanted
    if options.custom:
        from simtool.solvers.custom.objective import load

        own["objective"] = {"source_sha256": load(options.objective).source_sha256}
    return {
        **own,
        "format_version": SPEC_VERSION,
        "options": {
            key: value
            for key, value in asdict(resolved).items()
            if key not in _LATER_OPTIONS or not (value is None or value is False)
        },
        "sizes": {"n": header.states, "p": header.inputs, "q": header.outputs, "m": header.samples},
        "blocks": to_json(header.blocks),
        "output_parents": list(header.output_parents),
        "has_bias": header.has_bias,
        "states": {"content_sha256": source.content_sha256()},
        "environment": environment.fingerprint(packages_of(resolved)),
    }


def packages_of(options: SparsifyOptions) -> tuple[str, ...]:
    """What solves the rows of resolved ``options`` beside our own code; the bound of an objective of one's own is always Clarabel's."""
    cones = {name for name in ("clarabel", "mosek", "scs") if name == options.solver}
    if options.custom:
        cones |= {"clarabel"}
    return ("cvxpy", *sorted(cones)) if cones else ()


def spec_of(source: States, options: SparsifyOptions) -> dict[str, Any]:
    """The spec of a run of ``options`` on ``source``. Raises OptionError or InputError where sparsify would."""
    return make_spec(source, constraints_asked(source, options)[1])
