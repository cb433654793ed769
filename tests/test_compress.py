"""The example networks at 80 % sparsity without retraining, exported and run in ONNX Runtime, as examples/networks/compress.py does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from simtool.importing import resolve

COMPRESS = resolve(f"{Path(__file__).parents[1] / 'examples' / 'networks' / 'compress.py'}:compress")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "most"),
    [
        ("lenet", "pytorch", 0.01),
        ("lenet", "onnx", 0.01),
        ("resnet", "pytorch", 0.02),
        ("lstm", "pytorch", 0.03),
        ("lstm", "onnx", 0.04),
        ("gru", "pytorch", 0.05),
        ("transformer", "onnx", 0.12),
    ],
)
def test_networks_without_retraining(name: str, source: str, most: float, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = COMPRESS(name, source, 0.8, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found.certified == found.rows
    assert found.nnz == int(0.2 * found.baseline_nnz + 1e-9)
    assert found.dense - found.sparse < most
    # What ONNX Runtime counts with the exported file is what the report says of the model.
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert abs(report["accuracy"] - found.sparse) < 0.003
    assert abs(report["baseline_accuracy"] - found.dense) < 0.003
