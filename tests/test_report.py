"""The report: block counts, the picture of M at any size, a self-contained page, nothing foreign replaced."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model
from scipy import sparse

from simtool.errors import OutputError
from simtool.model import CertificateTable, ImplicitModel
from simtool.report import check_folder, evaluate, figures, write_report
from simtool.report.pattern import Band, bands, count_blocks, layout, raster, whole
from simtool.report.text import percent, points, readable, size, sparsity


@pytest.fixture
def data(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", inputs=rng.random((40, 6)), labels=rng.integers(0, 3, 40))
    return str(tmp_path / "data.npz")


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.alts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                self.sources.append(str(value))
            if name == "alt":
                self.alts.append(str(value))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_self_contained(data: str, tmp_path: Path) -> None:
    model = layered_model()
    evaluate(model, data, attack="fgsm", output=tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    pictures = {f"{name}.{kind}" for name in ("pattern", "certificates", "attack") for kind in ("png", "svg")}
    assert names == {"report.json", "report.html"} | pictures
    text = (tmp_path / "report" / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert len(page.sources) == len(page.alts) == 3
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script" not in text
    assert not re.search(r"url\(|@import|https?://", text)
    for fact in ("1 000 non-zero explicit parameters", "19 of 19", "yes, acyclic", "prefers-color-scheme"):
        assert fact in text
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert sum(entry["nnz"] for entry in stored["nnz_by_block"]) == model.nnz
    assert stored["certificates"]["certified"] == 19
    assert set(stored["figures"]) == pictures


def test_names_are_escaped(data: str, tmp_path: Path) -> None:
    model = layered_model()
    evil = '<script>alert("$x_{")</script>'
    blocks = tuple(replace(b, name=evil if b.name == "h3" else b.name) for b in model.blocks)
    model = replace(model, blocks=blocks, output_parents=(), header_extra={"note": evil})
    evaluate(model, data, output=tmp_path / "report")
    assert "<script" not in (tmp_path / "report" / "report.html").read_text()


def test_same_numbers_same_pictures(data: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate(layered_model(), data, attack="inversion", output=tmp_path / name)
    for path in sorted((tmp_path / "one").glob("*.[ps][nv]g")):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), density=st.floats(0.0, 0.5))
def test_block_counts_add_up(seed: int, density: float) -> None:
    model = free_model(n=12, density=density, seed=seed)
    model = replace(
        model,
        blocks=tuple(
            replace(model.blocks[0], name=f"b{i}", offset=4 * i, size=4, shape=(4,)) for i in range(3)
        ),
        output_parents=(),
    )
    counted = count_blocks(model)
    dense = whole(model).toarray() != 0
    for i, row in enumerate(counted.rows):
        for j, column in enumerate(counted.columns):
            part = dense[row.start : row.start + row.size, column.start : column.start + column.size]
            assert counted.counts[i, j] == part.sum()
            assert counted.density()[i, j] == pytest.approx(part.mean())


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=12), pixels=st.integers(50, 400))
def test_layout_gives_every_band_its_pixels(sizes: list[int], pixels: int) -> None:
    extents = np.diff(layout(sizes, pixels, 5))
    assert (extents >= 5).all()
    order = np.argsort(sizes)
    assert (np.diff(extents[order]) >= 0).all()


def test_raster_repeats_small_bands_and_averages_large_ones() -> None:
    rows, columns = (Band("r", 0, 2),), (Band("a", 0, 2), Band("b", 2, 8))
    matrix = np.zeros((2, 10))
    matrix[0, 0] = matrix[1, 2:6] = 1.0
    picture = raster(sparse.csr_array(matrix), rows, columns, np.array([0, 4]), np.array([0, 4, 6]))
    expected = np.zeros((4, 6))
    expected[:2, :2] = 1.0  # one entry over 2 x 2 pixels
    expected[2:, 4] = 1.0  # four columns in one pixel, all full
    assert np.array_equal(picture, expected)


@pytest.mark.parametrize("shape", ["small", "large", "deep", "no bias column"])
def test_patterns_of_any_size_are_drawn(shape: str) -> None:
    if shape == "small":
        model = layered_model(hidden=(1,), q=1, inputs=1)
    elif shape == "large":
        rng = np.random.default_rng(0)
        n = 3000
        base = free_model(n=4)
        model = ImplicitModel(
            A=sparse.random_array((n, n), density=0.001, rng=rng),
            B=sparse.random_array((n, 2001), density=0.002, rng=rng),
            C=np.ones((10, n)),
            D=np.zeros((10, 2001)),
            blocks=(replace(base.blocks[0], size=n, shape=(n,), parents=()),),
        )
    elif shape == "deep":
        model = layered_model(hidden=(4,) * 40)
    else:
        base = layered_model()
        model = replace(base, has_bias=False, input_shape=(7,))
    encoded = figures.encode(figures.draw_pattern(model))
    assert encoded["png"].startswith(b"\x89PNG")
    assert b"<svg" in encoded["svg"]
    rows, columns = bands(model)
    assert sum(band.size for band in rows) == model.n + model.q
    assert sum(band.size for band in columns) == model.n + model.p


@pytest.mark.parametrize("gaps", [[0.0, 0.0], [1e-300, 5.0], [np.inf, np.nan], [1e-7, 1e-7]])
@pytest.mark.parametrize("tolerance", [None, 1e-6])
def test_certificates_of_any_size_are_drawn(gaps: list[float], tolerance: float | None) -> None:
    one = np.ones(2)
    table = CertificateTable(
        certified=one, kind=[0, 3], primal=one, dual=one, relative_gap=gaps,
        kappa_slack=one, multiplier=one, projection_error=one,
    )  # fmt: skip
    assert figures.encode(figures.draw_certificates(table, tolerance))["png"].startswith(b"\x89PNG")


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    check_folder(folder, overwrite=False)
    (folder / "chapter.tex").write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        check_folder(folder, overwrite=False)
    with pytest.raises(OutputError, match="is not a report"):
        check_folder(folder, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        check_folder(folder / "chapter.tex", overwrite=True)
    with pytest.raises(OutputError, match="does not exist"):
        check_folder(tmp_path / "no" / "where", overwrite=True)


def test_overwriting_keeps_notes_and_drops_stale_pictures(data: str, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    evaluate(layered_model(), data, attack="fgsm", output=folder)
    (folder / "notes.txt").write_text("mine")
    evaluate(layered_model(certified=False), data, output=folder, overwrite=True)
    assert {path.name for path in folder.iterdir()} == {
        "notes.txt", "report.json", "report.html", "pattern.png", "pattern.svg",
    }  # fmt: skip
    assert not list(tmp_path.glob(".*tmp"))


def test_a_failed_write_leaves_the_old_report(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "report"
    result = evaluate(layered_model(), data, output=folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="no space left"):
        write_report(folder, layered_model(seed=1), result, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not list(tmp_path.glob(".*tmp"))


def test_numbers_read_well() -> None:
    assert percent(0.8770) == "87.70 %"
    assert percent(None) == "–"
    assert percent(-1e-9) == "0.00 %"
    assert [points(drop) for drop in (0.0, 1e-9, -1e-9, 0.0028, -0.01)] == [
        "0.00", "0.00", "0.00", "-0.28", "+1.00",
    ]  # fmt: skip
    assert readable("/tmp/donn\udcc3\udca9es") == "/tmp/données"
    assert readable("\udcff") == "\ufffd"
    assert readable("\ud800 é") == "? é"
    assert [size(n) for n in (0, 999, 39_400, 212_072, 5_000_000)] == [
        "0 B",
        "999 B",
        "39.4 kB",
        "212 kB",
        "5 MB",
    ]
    assert (
        sparsity({"sparsity": -0.125, "nnz": 59645, "baseline_nnz": 53018}) == "-12.50 % (59 645 of 53 018)"
    )


def test_without_a_baseline_it_has_no_column(data: str, tmp_path: Path) -> None:
    evaluate(layered_model(), data, attack="fgsm", output=tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert '<th class="n">baseline</th>' not in text
    assert "<h2>Model</h2>" in text
    assert "1000 non-zero explicit parameters" in text  # the denominator line
    network = replace(layered_model(certified=False), structure="exact").save(tmp_path / "network.h5")
    evaluate(layered_model(), data, baseline=str(network), attack="fgsm", output=tmp_path / "both")
    text = (tmp_path / "both" / "report.html").read_text()
    assert text.count('<th class="n">baseline</th>') == 2
    assert "0.00 points" in text
    assert "-0.00" not in text


def test_an_exact_form_needs_no_certificates(data: str, tmp_path: Path) -> None:
    evaluate(replace(layered_model(certified=False), structure="exact"), data, output=tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert "none needed" in text
    assert "carries no certificates" not in text


def test_a_regression_under_attack_has_numbers_and_a_figure(tmp_path: Path) -> None:
    model = layered_model()
    rng = np.random.default_rng(0)
    path, plain = str(tmp_path / "data.npz"), str(tmp_path / "plain.npz")
    np.savez(path, inputs=rng.random((40, 6)), labels=rng.normal(size=(40, 3)))
    result = evaluate(model, path, attack="fgsm", epsilons=["0.1"], output=tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    assert f'<td>0.1</td><td class="n">{result["robust_mse"]["0.1"]:.4g}</td>' in text
    assert f'<td>0</td><td class="n">{result["mse"]:.4g}</td>' in text
    assert (tmp_path / "report" / "attack.png").exists()
    np.savez(plain, inputs=rng.random((40, 6)))
    single = free_model(q=1, p=7)
    evaluate(single, plain, attack="inversion", output=tmp_path / "plain")
    text = (tmp_path / "plain" / "report.html").read_text()
    assert "no targets" in text
    assert not (tmp_path / "plain" / "attack.png").exists()


def test_equal_curves_both_stay_visible() -> None:
    values = {"0": 0.9, "0.1": 0.8}
    (axes,) = figures.draw_attack({"model": values, "baseline": values}, "accuracy", "fgsm").axes
    model, baseline = axes.get_lines()
    assert model.get_linestyle() == "-"
    assert baseline.get_linestyle() != "-"
    assert model.get_linewidth() > baseline.get_linewidth()
    assert model.get_color() != baseline.get_color()
