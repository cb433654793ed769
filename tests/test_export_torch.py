"""to_torch computes what the model computes, its gradients are right, and from_torch brings trained values back."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import free_model, layered_model
from scipy import sparse

from simtool import activations
from simtool.blocks import Block
from simtool.data import open_data
from simtool.demo import NETWORK
from simtool.errors import InputError, OptionError
from simtool.export.plan import plan
from simtool.export.torch_module import activate, from_torch, to_torch
from simtool.model import FixedPoint, ImplicitModel, load_model
from simtool.networks import NetworkSpec
from simtool.stages.convert import convert

SPECS = (
    "identity",
    "relu",
    "leaky_relu:0.1",
    "tanh",
    "sigmoid",
    "elu:0.7",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus:2.0",
    "clip:0.8",
    "square:0.8",
)
TIGHT = FixedPoint(tolerance=1e-13)


def mixed_model(seed: int = 0, loop: bool = False, has_bias: bool = True) -> ImplicitModel:
    """Three blocks of different activations: c feeds itself (acyclically, unless ``loop``), a skips b."""
    rng = np.random.default_rng(seed)
    a = np.zeros((12, 12))
    a[:4, 4:] = rng.normal(size=(4, 8)) * (rng.random((4, 8)) < 0.5)  # c from b and a
    a[0, 1] = a[1, 3] = 0.4  # inside c
    a[4:8, 8:] = rng.normal(size=(4, 4)) * (rng.random((4, 4)) < 0.7)  # b from a
    if loop:
        a[3, 0], a[2, 2] = 0.5, -0.3
    p = 5 + int(has_bias)
    blocks = (
        Block("c", activations.parse("tanh"), 0, 4, (2, 2), ("c", "b", "a", "input")),
        Block("b", activations.parse("silu"), 4, 4, (4,), ("a",)),
        Block("a", activations.parse("leaky_relu:0.2"), 8, 4, (4,), ("input",)),
    )
    return ImplicitModel(
        A=a,
        B=rng.normal(size=(12, p)) * (rng.random((12, p)) < 0.4),
        C=rng.normal(size=(3, 12)) * (rng.random((3, 12)) < 0.6),
        D=rng.normal(size=(3, p)) * (rng.random((3, p)) < 0.4),
        blocks=blocks,
        has_bias=has_bias,
        output_map="softmax",
        input_shape=(5,),
    )


def samples(model: ImplicitModel, count: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, *model.input_shape))


def check_gradients(model: ImplicitModel, dense: bool | None = None) -> None:
    module = to_torch(model, dtype=torch.float64, dense=dense, options=TIGHT)
    values = {name: getattr(module, name) for name in "ABCD"}
    inputs = torch.from_numpy(samples(model, 3)).requires_grad_()

    def outputs(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(values, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(outputs, (inputs, *values.values()), eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_activations_and_their_slopes(spec: str) -> None:
    activation = activations.parse(spec)
    z = torch.linspace(-60, 60, 997, dtype=torch.float64).requires_grad_()
    x = activate(spec, z)
    np.testing.assert_allclose(x.detach().numpy(), activation(z.detach().numpy()), rtol=1e-12, atol=1e-15)
    x.sum().backward()
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), activation.slope(z.detach().numpy()), rtol=1e-10, atol=1e-12)


def test_no_activation_is_missing() -> None:
    assert {spec.partition(":")[0] for spec in SPECS} == set(activations.NAMES)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_of_acyclic_models(spec: str) -> None:
    check_gradients(layered_model(4, (4, 3), activation=spec, output_map="log_softmax"))


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_through_the_fixed_point(spec: str) -> None:
    check_gradients(free_model(n=6, p=4, q=2, activation=spec, norm=0.5))


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("loop", [True, False])
def test_gradients_of_mixed_models(loop: bool, dense: bool) -> None:
    check_gradients(mixed_model(loop=loop), dense)


def test_gradients_where_only_the_matrix_measure_proves() -> None:
    model = free_model(n=5, p=3, norm=1.2, diagonal=-0.6, activation="tanh")
    assert model.well_posedness().by == "mu-inf"
    check_gradients(model)


def ring(n: int = 20) -> ImplicitModel:
    """One long cycle: far fewer entries than n^2."""
    model = free_model(n=n, p=3, q=2, activation="tanh")
    few = {name: getattr(model, name).toarray() for name in "BC"}
    few["B"][3:], few["C"][:, :-3] = 0.0, 0.0
    return replace(model, A=0.9 * np.eye(n)[np.roll(np.arange(n), 1)], **few)


def test_gradients_of_a_long_sparse_cycle() -> None:
    check_gradients(ring())


def test_frozen_values_need_no_gradient() -> None:
    model = ring()
    module = to_torch(model, dtype=torch.float64, options=TIGHT).requires_grad_(False)
    inputs = torch.from_numpy(samples(model, 2)).requires_grad_()
    assert torch.autograd.gradcheck(module, (inputs,), atol=1e-6)
    assert module.A.grad is None


def test_no_states_at_all() -> None:
    model = layered_model()
    flat = ImplicitModel(
        A=np.zeros((0, 0)), B=np.zeros((0, 7)), C=np.zeros((3, 0)), D=model.D.toarray() + 1.0, blocks=()
    )
    inputs = samples(flat)
    found = to_torch(flat, dtype=torch.float64)(torch.from_numpy(inputs)).detach().numpy()
    np.testing.assert_allclose(found, flat.predict(inputs), rtol=1e-12)


@settings(max_examples=25)
@given(
    st.integers(0, 10**6),
    st.booleans(),
    st.booleans(),
    st.sampled_from([True, False, None]),
    st.integers(1, 7),
)
def test_outputs_are_the_models(
    seed: int, loop: bool, has_bias: bool, dense: bool | None, count: int
) -> None:
    model = mixed_model(seed, loop, has_bias)
    inputs = samples(model, count, seed)
    expected = model.predict(inputs)
    module = to_torch(model, dtype=torch.float64, dense=dense)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(inputs)).numpy(), expected, rtol=1e-8, atol=1e-8)
        before = to_torch(model, output_map=False, dense=dense)(torch.from_numpy(inputs))
    assert before.dtype == torch.float32
    y = model.forward(model.states_inputs(inputs)).Y.T
    np.testing.assert_allclose(before.numpy(), y, rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans())
def test_the_plan_holds_every_entry_once(seed: int, loop: bool) -> None:
    model = mixed_model(seed, loop)
    *states, output = plan(model)
    taken = [np.concatenate([s.states.take, s.inner.take if s.inner else []]) for s in states]
    assert sorted(np.concatenate(taken)) == list(range(model.A.nnz))
    inputs = np.concatenate([np.concatenate([s.inputs.take, s.bias.take]) for s in states])
    assert sorted(inputs) == list(range(model.B.nnz))
    assert sorted(output.states.take) == list(range(model.C.nnz))
    assert sorted(np.concatenate([output.inputs.take, output.bias.take])) == list(range(model.D.nnz))
    for number, step in enumerate(states):
        assert all(source < number for source in step.sources)
    assert any(step.cyclic for step in states) == loop


def test_one_step_a_block_where_blocks_have_an_order() -> None:
    assert [step.name for step in plan(layered_model(hidden=(7, 5, 4)))] == ["h1", "h2", "h3", "output"]


def test_shapes_types_and_copies() -> None:
    model = replace(layered_model(6), input_shape=(2, 3))
    module = to_torch(model)
    inputs = torch.zeros(0, 2, 3)
    assert module(inputs).shape == (0, 3)
    assert module(torch.ones(4, 6, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(InputError, match="takes"):
        module(torch.zeros(4, 5))
    with pytest.raises(OptionError, match="float32"):
        to_torch(model, dtype=torch.float16)
    cyclic = to_torch(free_model(n=6))
    given_ = torch.ones(2, cyclic.input_size)
    for other in (copy.deepcopy(cyclic), pickle.loads(pickle.dumps(cyclic))):
        assert torch.equal(other(given_), cyclic(given_))
    fresh = to_torch(free_model(n=6, density=0.4))
    fresh.load_state_dict(cyclic.state_dict())
    assert torch.equal(fresh(given_), cyclic(given_))


def test_values_come_back() -> None:
    model = layered_model()
    module = to_torch(model, dtype=torch.float64)
    same = from_torch(module, model)
    for name in "ABCD":
        assert (getattr(same, name) != getattr(model, name)).nnz == 0
    assert model.certificates is not None
    assert same.certificates is None
    assert from_torch(module, replace(model, parameters_nnz=5)).parameters == model.nnz
    with torch.no_grad():
        module.B.mul_(2.0)
    assert abs(from_torch(module, model).B - 2.0 * model.B).max() == 0.0
    with pytest.raises(InputError, match="pattern of A"):
        from_torch(module, layered_model(hidden=(7, 5, 5)))
    with pytest.raises(InputError, match="made by to_torch"):
        from_torch(torch.nn.Linear(2, 2), model)
    with torch.no_grad():
        module.C[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        from_torch(module, model)


def test_well_posedness_is_judged_again() -> None:
    model = free_model(norm=0.9)
    assert model.well_posedness().well_posed
    module = to_torch(model)
    with torch.no_grad():
        module.A.mul_(3.0)
    tuned = from_torch(module, model)
    assert not tuned.well_posedness().well_posed
    assert tuned.scale is None


def sparse_digits(digits: dict[str, Path], path: Path, keep: float) -> ImplicitModel:
    """The demo's network with the smallest weights cut, which hurts it."""
    convert(NetworkSpec(NETWORK, weights=digits["weights"]), path)
    model = load_model(path)

    def cut(matrix: sparse.csr_array) -> sparse.csr_array:
        limit = np.quantile(np.abs(matrix.data), 1 - keep)
        result = matrix.copy()
        result.data[np.abs(result.data) < limit] = 0.0
        return result

    return replace(model, A=cut(model.A), B=cut(model.B), C=cut(model.C))


@pytest.mark.parametrize("loop", [False, True])
def test_fine_tuning_on_digits(digits: dict[str, Path], tmp_path: Path, loop: bool) -> None:
    model = sparse_digits(digits, tmp_path / "m.h5", 0.15)
    if loop:  # the first hidden layer, stored last, feeds itself as well
        a = model.A.tolil()
        for i in range(32, 80):
            a[i, 32 + (i + 1) % 48] = 0.2
        model = replace(model, A=a, structure="free")
        assert model.well_posedness().by == "norm"
    source = open_data("digits", "train")
    inputs = torch.from_numpy(np.concatenate(list(source.batches(np.arange(256), 256))))
    labels = torch.from_numpy(np.asarray(source.labels())[:256])
    module = to_torch(model, output_map=False)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(inputs), labels)
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    tuned = from_torch(module, model)
    for name in "ABCD":
        old, new = getattr(model, name), getattr(tuned, name)
        assert np.array_equal(old.indices, new.indices)
        assert np.array_equal(old.indptr, new.indptr)
    assert np.abs(tuned.A.data - model.A.data).max() > 1e-3
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(module(inputs), labels)
    y = tuned.forward(tuned.states_inputs(inputs.numpy())).Y.T
    again = torch.nn.functional.cross_entropy(torch.from_numpy(y), labels)
    assert float(again) == pytest.approx(float(expected), rel=1e-4)
