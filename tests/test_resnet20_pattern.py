"""The residual network of the examples: what its matrix A is made of, and what the picture shows of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from simtool.importing import resolve
from simtool.model import ImplicitModel
from simtool.networks import NetworkSpec
from simtool.networks.torch_reader import read_module
from simtool.stages.convert import convert, implicit_form

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "resnet20_pattern.py")
WIDTH, SIZE = 2, 8


@pytest.fixture(scope="module")
def network() -> Any:
    return resolve(f"{EXAMPLE}:resnet20")(WIDTH, SIZE)


@pytest.fixture(scope="module")
def model(network: Any) -> ImplicitModel:
    return implicit_form(read_module(network, network.input_shape, {"network": "net"}).graph)


def test_twenty_layers_and_nine_skips(model: ImplicitModel) -> None:
    assert [b.activation.name for b in model.blocks] == ["identity"] + ["relu"] * 19
    pixels = SIZE * SIZE
    groups = [
        7 * [WIDTH * pixels],
        6 * [2 * WIDTH * pixels // 4],
        6 * [4 * WIDTH * pixels // 16],
        [4 * WIDTH],
    ]
    expected = [size for group in reversed(groups) for size in group]
    assert [b.size for b in model.blocks] == expected
    links = resolve(f"{EXAMPLE}:skip_links")(model)
    assert links.tolist() == [[i, i + 2] for i in range(1, 18, 2)]
    assert model.well_posedness().by == "acyclic"
    # nothing but the layer before, and the skips
    kept = np.zeros((20, 20), dtype=bool)
    kept[np.arange(19), np.arange(1, 20)] = True
    kept[links[:, 0], links[:, 1]] = True
    for i, row in enumerate(model.blocks):
        for j, column in enumerate(model.blocks):
            assert bool(model.A[row.rows][:, column.rows].nnz) == kept[i, j]


def test_convolutions_are_constant_along_diagonals_and_skips_are_lines(
    model: ImplicitModel, network: Any
) -> None:
    blocks = model.blocks
    pixels = SIZE * SIZE
    first = network.blocks[0]
    found = model.A[blocks[18].rows][:, blocks[19].rows].toarray()
    scale = 1.0 / np.sqrt(1.0 + first.norm_one.eps)
    kernel = first.one.weight.detach().double().numpy() * scale
    for out in range(WIDTH):
        for into in range(WIDTH):
            piece = found[out * pixels : (out + 1) * pixels, into * pixels : (into + 1) * pixels]
            diagonals = {(i - 1) * SIZE + j - 1: kernel[out, into, i, j] for i in range(3) for j in range(3)}
            for offset in range(1 - pixels, pixels):
                values = np.diagonal(piece, offset)
                values = values[values != 0]
                assert bool(values.size) == (offset in diagonals)
                assert np.allclose(values, diagonals.get(offset, 0.0), rtol=1e-6)
    for i, j in resolve(f"{EXAMPLE}:skip_links")(model):
        link = model.A[blocks[i].rows][:, blocks[j].rows].toarray()
        if blocks[i].size == blocks[j].size:
            assert np.array_equal(link, np.eye(len(link)))
        else:  # every second pixel of every second line; the other half of the channels gets nothing
            side = SIZE if j > 12 else SIZE // 2
            taken = np.arange(blocks[j].size).reshape(-1, side, side)[:, ::2, ::2].ravel()
            expected = np.zeros_like(link)
            expected[np.arange(len(taken)), taken] = 1.0
            assert np.array_equal(link, expected)


def test_the_picture_shows_every_entry_where_there_are_pixels_enough(model: ImplicitModel) -> None:
    figure = resolve(f"{EXAMPLE}:draw")(model, pixels=model.n)
    (picture,) = figure.axes[0].images
    colours = np.asarray(picture.get_array())
    assert colours.shape == (model.n, model.n, 3)
    white = (colours == 1.0).all(axis=2)
    assert np.array_equal(~white, model.A.toarray() != 0)
    orange = ~white & (colours[:, :, 0] > colours[:, :, 2])
    expected = np.zeros_like(orange)
    for i, j in resolve(f"{EXAMPLE}:skip_links")(model):
        expected[model.blocks[i].rows, model.blocks[j].rows] = True
    assert np.array_equal(orange, expected & ~white)
    small = np.asarray(resolve(f"{EXAMPLE}:draw")(model, pixels=300).axes[0].images[0].get_array())
    assert small.shape == (300, 300, 3)
    assert 0 < (small < 1.0).any(axis=2).mean() < 0.2


def test_the_script_draws_and_tells(tmp_path: Path, model: ImplicitModel) -> None:
    arguments = ["--width", str(WIDTH), "--size", str(SIZE), "-o", str(tmp_path / "new")]
    threads = torch.get_num_threads()
    result = CliRunner().invoke(resolve(f"{EXAMPLE}:main"), arguments)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    for said in (
        f"ResNet-20: {model.n} states in 20 layers",
        f"{model.A.nnz} non-zeros",
        "9 skips",
        "acyclic",
    ):
        assert said in result.stdout
    assert float(result.stdout.split("outputs within ")[1].split()[0]) < 1e-12
    png, svg = (tmp_path / "new" / f"resnet20_A.{kind}" for kind in ("png", "svg"))
    assert png.read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


def test_the_factory_converts_from_the_command_line_form(tmp_path: Path, model: ImplicitModel) -> None:
    spec = NetworkSpec(f"{EXAMPLE}:resnet20", (f"width={WIDTH}", f"size={SIZE}"), input_shape=(3, SIZE, SIZE))
    result = convert(spec, tmp_path / "resnet.h5")
    assert (result["states"], result["well_posed_by"]) == (model.n, "acyclic")
    deeper = NetworkSpec(f"{EXAMPLE}:resnet20", ("width=1", "size=4", "depth=1"), input_shape=(3, 4, 4))
    assert len(convert(deeper, tmp_path / "eight.h5")["blocks"]) == 8
