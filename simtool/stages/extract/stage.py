"""The stage: a network and data in, a states file out."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import h5py
import numpy as np

from simtool import hdf5
from simtool.blocks import BIAS, INPUT, Block
from simtool.data import DataSource, data_path, open_data
from simtool.errors import InputError, OptionError, OutputError
from simtool.networks import Network, NetworkSpec, load_network
from simtool.networks.formable import MOST_STORED
from simtool.networks.stored import store
from simtool.progress import NO_PROGRESS, Progress
from simtool.rescale import DEFAULT_GAMMA, Rescale, scaling
from simtool.stages.extract.choice import Choice, choose
from simtool.stages.extract.layers import Recorded, plan, shared
from simtool.stages.extract.recording import Recording, probe_columns
from simtool.states import StatesHeader, StatesLayout, create_states

log = logging.getLogger("simtool")

_BATCH_BYTES = 2**25
_MAX_BATCH = 1024


def extract(
    network: NetworkSpec | str,
    data: str,
    *,
    output: str | Path,
    split: str | None = "train",
    samples: int | None = None,
    seed: int = 0,
    rescale: str = "none",
    gamma: float = DEFAULT_GAMMA,
    batch_size: int | None = None,
    blocks: Sequence[str] | None = None,
    positions: int | None = None,
    overwrite: bool = False,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Run ``network`` over ``data`` and write U, Z, X, Y to ``output`` (states.h5).

    Parameters
    ----------
    network : a NetworkSpec, or its NETWORK text alone
    data, split, samples, seed : what to run it on; without ``samples`` all of it
    rescale, gamma : see :mod:`simtool.rescale`
    batch_size : samples at a time; by default as many as fit into 32 MiB, at most 1024
    blocks : globs of the blocks whose states are stored, or ("none",); by default all, but of a network with shared weights
        only where they take less than 4 GiB
    positions : of each sample that become columns of a layer with shared weights; by default as many as give 10 000 columns,
        or 16 for each feature of its rows if that is more

    Returns the JSON object of ``simtool extract --json``. Raises InputError for the network or the data, OptionError, and OutputError
    where the file cannot be written; nothing is left behind then.
    """
    started = perf_counter()
    target, mode = Path(output), Rescale(rescale, gamma)
    spec = NetworkSpec(network) if isinstance(network, str) else network
    hdf5.writable_target(target, overwrite, kind="states", inputs=(*spec.files, data_path(data)))
    source = open_data(data, split)
    indices = source.select(samples, seed)
    loaded = load_network(spec, source.sample_shape)
    _check_fit(loaded, source)
    has_layers = shared(loaded)
    if positions is not None and not has_layers:
        raise OptionError(
            f"--positions {positions} is about layers whose weights are shared over positions, {loaded.description['network']} has none. "
            "Leave it out."
        )
    _warn_left(loaded, has_layers)
    chosen = choose(loaded, None if blocks is None else tuple(blocks), len(indices), has_layers)
    if mode.mode != "none" and not chosen.whole:
        raise OptionError(
            f"--rescale {mode.mode} needs all states; {chosen.states} are to be stored. Leave --blocks out."
        )
    layers: tuple[Recorded, ...] = ()
    if has_layers:
        probe = next(iter(source.batches(indices[:1], 1)))
        layers = plan(loaded, probe, len(indices), positions, seed)
    layout = _layout(loaded, chosen, layers, len(indices), batch_size)
    _check_space(target, layout)
    if chosen.whole and not layers:
        _warn_interpolation(chosen.blocks, loaded.graph.input_size, len(indices))
    form = chosen.teacher(layout.inputs, layout.outputs)
    g = scaling(mode, form, chosen.blocks)
    teacher = form.scaled(g) if mode.mode != "none" else form
    run = Recording(loaded, chosen, g, teacher, probe_columns(len(indices), loaded), layers, len(indices))
    with create_states(target, layout, overwrite) as writer:
        progress.start(len(indices), "samples", "extract")
        for batch in source.batches(indices, layout.batch):
            here = slice(writer.columns, writer.columns + len(batch))
            writer.append(*run.columns(batch, indices[here], writer.columns))
            for index, (design, targets) in enumerate(run.layer_columns):
                writer.append_layer(index, design, targets)
            progress.advance(len(batch))
        progress.finish()
        labels = source.labels()
        header = _header(loaded, source, layout, run, mode, seed)
        writer.finish(
            header,
            indices=indices,
            labels=None if labels is None else labels[indices],
            scaling=g,
            sensitivity=run.sensitivity(),
            teacher={"A": teacher.A, "B": teacher.B, "C": teacher.C, "D": teacher.D},
            layer_teachers=[entry.layer.table for entry in layers],
            layer_sensitivities=run.watched.mean(),
            store_program=_program_of(loaded, layers),
        )
    return {
        "samples": layout.samples,
        "inputs": layout.inputs,
        "states": layout.states,
        "outputs": layout.outputs,
        "blocks": [
            {"name": b.name, "activation": b.activation.spec, "size": b.size, "parents": list(b.parents)}
            for b in chosen.blocks
        ],
        "layers": [
            {
                "name": e.layer.spec.name,
                "kind": e.layer.spec.kind,
                "rows": e.layer.spec.rows,
                "features": e.layer.spec.features,
                "groups": e.layer.spec.groups,
                "positions": int(e.order.size),
                "columns": e.layer.spec.columns,
            }
            for e in layers
        ],
        "output_map": loaded.outline.output_map,
        "rescale": mode.mode,
        "norm_a_inf": float(np.max(abs(teacher.A).sum(axis=1))) if chosen.whole else None,
        "baseline_nnz": loaded.outline.baseline_nnz,
        "bytes": target.stat().st_size,
        "seconds": perf_counter() - started,
        "max_reconstruction_error": run.reconstruction_error,
        "output": str(target),
    }


def _program_of(network: Network, layers: tuple[Recorded, ...]) -> Callable[[h5py.File], None] | None:
    """What writes the network's program, for the implicit form with other weights; None where there is none, or too large a one."""
    found = network.outline
    if not layers or found.whole is None or found.whole.entries > MOST_STORED:
        return None

    def write(file: h5py.File) -> None:
        store(file, found.program, found.layouts, found.input_shape, found.layers)

    return write


def _check_fit(network: Network, source: DataSource) -> None:
    if prod(source.sample_shape) != prod(network.input_shape):
        raise InputError(
            f"a sample has {prod(source.sample_shape)} values, the network takes {prod(network.input_shape)} ({source.name} holds "
            f"samples of shape {source.sample_shape}, the network takes {network.input_shape}). Use data that fits the network, "
            "or --input-shape where the network leaves its input open."
        )
    whole = network.outline.whole
    if whole is not None and not whole.nodes:
        raise InputError(
            f"{network.description['network']} has no activation between its input and its output, so it has no states. "
            "Use a network with at least one hidden layer."
        )


def _layout(
    network: Network, chosen: Choice, layers: tuple[Recorded, ...], samples: int, batch_size: int | None
) -> StatesLayout:
    p, n, q = prod(network.input_shape) + 1, chosen.states, network.output_size
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"the batch size must be above 0, got {batch_size}.")
    uses = [use for entry in layers for use in entry.layer.uses]
    held = sum(
        prod(use.in_shape) + prod(use.out_shape) for use in uses
    )  # of a sample, while its columns are taken
    fitting = int(np.clip(_BATCH_BYTES // (4 * (p + 2 * n + q + held)), 1, _MAX_BATCH))
    batches = -(-samples // (batch_size or fitting))
    return StatesLayout(
        # batches of equal size: no half-filled chunks
        samples,
        p,
        n,
        q,
        -(-samples // batches),
        tuple(entry.layer.spec for entry in layers),
    )


def _check_space(target: Path, layout: StatesLayout) -> None:
    needed = 4 * layout.samples * (layout.inputs + 2 * layout.states + layout.outputs)
    needed += sum(4 * layer.columns * (layer.features + layer.rows) for layer in layout.layers)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise OutputError(
            f"the states need {needed / 2**20:.0f} MiB, {target.parent} has {free / 2**20:.0f} MiB left. Use fewer --samples "
            "or --positions, or another disk."
        )


def _warn_left(network: Network, has_layers: bool) -> None:
    """Say which operators with weights are no layers, and what becomes of them."""
    fate = (
        "it stays as it is, and its parameters are counted"
        if has_layers
        else "it has a row for each state instead"
    )
    for op, why in network.outline.found.left:
        log.warning("%s has no rows of shared weights: %s; %s.", op.title, why, fate)


def _warn_interpolation(blocks: Sequence[Block], inputs: int, samples: int) -> None:
    sizes = {**{block.name: block.size for block in blocks}, INPUT: inputs, BIAS: 1}
    widest = max(blocks, key=lambda block: sum(sizes[name] for name in block.parents))
    d = sum(sizes[name] for name in widest.parents)
    if samples < d:
        log.warning(
            "%d samples are fewer than the %d values that feed a state of %s: such rows can fit the samples exactly (interpolate) "
            "without having learned the network. Use at least --samples %d if you can.",
            samples,
            d,
            widest.name,
            d,
        )


def _header(
    network: Network, source: DataSource, layout: StatesLayout, run: Recording, mode: Rescale, seed: int
) -> StatesHeader:
    outline, chosen = network.outline, run.choice
    matrices = [entry.layer.table for entry in run.layers]
    return StatesHeader(
        samples=layout.samples,
        inputs=layout.inputs,
        states=layout.states,
        outputs=layout.outputs,
        blocks=chosen.blocks,
        output_parents=chosen.output_parents,
        output_map=outline.output_map,
        has_bias=True,
        input_shape=network.input_shape,
        seed=seed,
        rescale=mode.mode,
        baseline_nnz=outline.baseline_nnz,
        baseline_bytes=4 * outline.baseline_parameters,
        network_sha256=network.sha256,
        data_sha256=source.sha256(),
        network=network.description,
        data={
            "source": source.name,
            "split": source.split,
            "count": source.count,
            "sample_shape": list(source.sample_shape),
        },
        max_reconstruction_error=run.reconstruction_error,
        input_range=(run.low, run.high),
        sensitivity_samples=len(run.probes),
        whole=chosen.whole,
        layers=layout.layers,
        carried_nnz=outline.baseline_nnz - sum(int(np.count_nonzero(rows)) for rows in matrices)
        if matrices
        else 0,
    )
