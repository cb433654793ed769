"""The example networks: the stored weights reach their accuracy on real data, the trainer trains, ONNX agrees with torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from simtool.data import open_data
from simtool.importing import call, resolve
from simtool.networks.weights import apply_weights

FOLDER = Path(__file__).parents[1] / "examples" / "networks"
TRAINER = str(FOLDER / "train.py")
RECIPES = resolve(f"{TRAINER}:RECIPES")
# The least accuracy on the test split (FashionMNIST: on 2000 of its samples).
LEAST = {"lenet": 0.88, "resnet": 0.91, "lstm": 0.95, "gru": 0.95, "transformer": 0.95}


@pytest.fixture(autouse=True)
def one_thread():
    """One core, as the trainer uses; other tests find torch as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=LEAST)
def name(request: pytest.FixtureRequest) -> str:
    """Each example network; those on FashionMNIST are skipped where it is not."""
    if RECIPES[request.param].data == "fashion-mnist":
        request.getfixturevalue("fashion")
    return request.param


def _samples(name: str, split: str, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    source = open_data(RECIPES[name].data, split)
    chosen = source.select(None if count is None else min(count, source.count), seed=0)
    pixels = np.concatenate(list(source.batches(chosen, 4096)))
    return torch.from_numpy(pixels), torch.from_numpy(source.labels()[chosen])


def _trained(name: str) -> torch.nn.Module:
    """The network as simtool loads it: factory and weights named on the command line."""
    reference, weights = f"{FOLDER / name}.py:factory", FOLDER / f"{name}.safetensors"
    network = call(resolve(reference), reference)
    apply_weights(network, weights, reference)
    return network.eval()


def test_stored_weights_reach_their_accuracy(name: str) -> None:
    images, labels = _samples(name, "test", 2000)
    with torch.no_grad():
        found = (_trained(name)(images).argmax(dim=1) == labels).double().mean()
    assert found >= LEAST[name]


def test_flat_samples_and_those_with_a_channel_are_the_same(name: str) -> None:
    network, (images, _) = _trained(name), _samples(name, "test", 5)
    with torch.no_grad():
        scores = network(images)
        assert torch.equal(network(images.flatten(1)), scores)
        assert torch.equal(network(images[:, None]), scores)
        torch.testing.assert_close(network(images[3:4]), scores[3:4])


def test_one_step_of_training_lowers_the_loss(name: str) -> None:
    step, make, optimiser_of = (resolve(f"{TRAINER}:{key}") for key in ("step", "make", "optimiser_of"))
    torch.manual_seed(1)
    images, labels = _samples(name, "train", 64)
    network = make(name).train()
    optimiser = optimiser_of(network, RECIPES[name])
    before = step(network, optimiser, images, labels)
    after = torch.nn.functional.cross_entropy(network(images), labels)
    assert float(after.detach()) < before - 0.01
    assert before == pytest.approx(np.log(10), abs=0.5)  # an untrained network knows nothing of ten classes


def test_clothes_are_moved_and_mirrored() -> None:
    torch.manual_seed(2)
    images = torch.rand(60, 28, 28)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    seen = Counter()
    for whole, image in zip(padded, resolve(f"{TRAINER}:crop_and_flip")(images), strict=True):
        windows = whole.unfold(0, 28, 1).unfold(1, 28, 1)  # (5, 5, 28, 28): every move
        found = [
            (int(down), int(right), mirrored)
            for mirrored, candidates in enumerate((windows, windows.flip(3)))
            for down, right in (candidates == image).all(dim=3).all(dim=2).nonzero()
        ]
        assert len(found) == 1
        seen[found[0]] += 1
    assert len(seen) > 25
    assert {mirrored for *_, mirrored in seen} == {0, 1}


def test_digits_are_distorted_a_little() -> None:
    torch.manual_seed(3)
    distort = resolve(f"{TRAINER}:distort")
    image = torch.zeros(2000, 8, 8)
    image[:, 3:5, 3:5] = 1.0
    distorted = distort(image)
    centre = torch.stack([(distorted.mean(0).sum(axis) * torch.arange(8)).sum() for axis in (0, 1)])
    assert torch.allclose(centre / distorted.mean(0).sum(), torch.full((2,), 3.5), atol=0.1)
    assert 0.6 < float(distorted[:, 3:5, 3:5].mean()) < 0.95  # blurred at its edge by the moves, still there
    assert float(distorted[:, 0].std()) == pytest.approx(0.2, rel=0.05)  # noise alone, far from the square
    assert not torch.equal(distorted[0], distorted[1])


@pytest.mark.parametrize(
    "dynamo", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["classic", "dynamo"]
)
def test_onnx_agrees_with_torch(name: str, dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript")
    path = tmp_path / "network.onnx"
    resolve(f"{TRAINER}:export_onnx")(name, path, dynamo=dynamo)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    operators = Counter(node.op_type for node in model.graph.node)
    if name in ("lstm", "gru"):
        assert operators[name.upper()] == 1
    network, (images, _) = _trained(name), _samples(name, "test", 33)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 33):  # any number of samples
        with torch.no_grad():
            expected = network(images[:count]).numpy()
        scores = session.run(["scores"], {"inputs": images[:count].numpy()})[0]
        assert np.abs(scores - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_training_is_repeatable_and_writes_both_files(tmp_path: Path) -> None:
    written = []
    for run in ("one", "two"):
        result = CliRunner().invoke(
            resolve(f"{TRAINER}:main"), ["gru", "--epochs", "3", "-o", str(tmp_path / run)]
        )
        assert result.exit_code == 0, result.output
        assert float(result.stdout.split("test accuracy ")[1].split(" %")[0]) > 40
        assert (tmp_path / run / "gru.onnx").is_file()
        written.append((tmp_path / run / "gru.safetensors").read_bytes())
    assert written[0] == written[1]
    assert written[0] != (FOLDER / "gru.safetensors").read_bytes()
