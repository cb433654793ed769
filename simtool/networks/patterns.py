"""Activations written out as arithmetic: silu as x*sigmoid(x), gelu by erf or tanh, hardswish by a clamp, in any order of the factors.

Every one of them is a polynomial in x and t with t = f(polynomial in x) and f one of sigmoid, erf, tanh. So we do not match
trees (exporters write the same formula in many shapes): the polynomials are computed and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isclose, log1p, pi, sqrt

from simtool import activations
from simtool.networks.program import Op, Program

# Polynomial in (x, t): {(power of x, power of t): coefficient}
Polynomial = dict[tuple[int, int], float]

_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg", "pow"})
_MAX_DEPTH = 12
_MAX_POWER = 4
_SOFTPLUS_TOLERANCE = 1e-5


def is_softplus(beta: float, threshold: float) -> bool:
    """Whether PyTorch's softplus, linear where beta z exceeds ``threshold``, is log(1 + exp(beta z)) / beta to 1e-5."""
    return beta > 0 and threshold > 0 and log1p(exp(-threshold)) / beta <= _SOFTPLUS_TOLERANCE


@dataclass(frozen=True)
class _Pattern:
    """phi(x) = outer(x, t) with t = function(inner(x))."""

    activation: str
    function: str
    inner: Polynomial
    outer: Polynomial


_C = sqrt(2.0 / pi)
_GELU_OUTER: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_PATTERNS = (
    _Pattern("silu", "sigmoid", {(1, 0): 1.0}, {(1, 1): 1.0}),
    _Pattern("gelu", "erf", {(1, 0): sqrt(0.5)}, _GELU_OUTER),
    _Pattern("gelu_tanh", "tanh", {(1, 0): _C, (3, 0): _C * 0.044715}, _GELU_OUTER),
)


def _add(a: Polynomial, b: Polynomial, sign: float) -> Polynomial:
    total = dict(a)
    for power, value in b.items():
        total[power] = total.get(power, 0.0) + sign * value
    return total


def _multiply(a: Polynomial, b: Polynomial) -> Polynomial | None:
    product: Polynomial = {}
    for (i, j), value in a.items():
        for (k, m), other in b.items():
            if max(i + k, j + m) > _MAX_POWER:
                return None
            product[i + k, j + m] = product.get((i + k, j + m), 0.0) + value * other
    return product


def _constant(a: Polynomial) -> float | None:
    return a.get((0, 0), 0.0) if all(power == (0, 0) for power in a) else None


class _Matcher:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.producer = {op.output: op for op in program.ops}
        self.consumers: dict[str, list[Op]] = {}
        for op in program.ops:
            for name in op.inputs:
                self.consumers.setdefault(name, []).append(op)

    def polynomial(self, tensor: str, x: str, t: str | None, depth: int = 0) -> Polynomial | None:
        """``tensor`` as a polynomial in the tensors ``x`` and ``t``; None if it is not one."""
        if tensor == x:
            return {(1, 0): 1.0}
        if tensor == t:
            return {(0, 1): 1.0}
        value = self.program.scalar(tensor)
        if value is not None:
            return {(0, 0): value}
        op = self.producer.get(tensor)
        if op is None or op.kind not in _ARITHMETIC or depth > _MAX_DEPTH:
            return None
        parts = [self.polynomial(name, x, t, depth + 1) for name in op.inputs]
        if any(part is None for part in parts):
            return None
        return self._combine(op, [part for part in parts if part is not None])

    def _combine(self, op: Op, parts: list[Polynomial]) -> Polynomial | None:
        if op.kind == "neg":
            return _add({}, parts[0], -1.0)
        left, right = parts
        weight = float(op.attributes.get("alpha", 1.0))
        if op.kind in ("add", "sub"):
            return _add(left, right, weight if op.kind == "add" else -weight)
        if op.kind == "mul":
            return _multiply(left, right)
        number = _constant(right)
        if number is None:
            return None
        if op.kind == "div":
            return {power: value / number for power, value in left.items()} if number else None
        power_: Polynomial | None = {(0, 0): 1.0}
        if not number.is_integer() or not 0 <= number <= _MAX_POWER:
            return None
        for _ in range(int(number)):
            power_ = None if power_ is None else _multiply(power_, left)
        return power_

    def ancestors(self, tensor: str) -> list[str]:
        """``tensor`` and what it is computed from by arithmetic alone, nearest first."""
        found = [tensor]
        for name in found:
            op = self.producer.get(name)
            if op is not None and op.kind in _ARITHMETIC and len(found) < 4 * _MAX_DEPTH:
                found += [i for i in op.inputs if i not in found and self.program.scalar(i) is None]
        return found

    def descendants(self, tensor: str) -> list[Op]:
        """The arithmetic computed from ``tensor``, nearest first."""
        found: list[Op] = []
        frontier = [tensor]
        for name in frontier:
            for op in self.consumers.get(name, []):
                if op.kind in _ARITHMETIC and op not in found and len(found) < 4 * _MAX_DEPTH:
                    found.append(op)
                    frontier.append(op.output)
        return found

    def find_softplus(self, op: Op) -> tuple[str, float] | None:
        """(x, beta) if ``op`` is where(beta x > threshold, x, softplus(beta x) / beta), as exporters write it."""
        if op.kind != "where":
            return None
        condition, x, smooth = op.inputs
        test = self.producer.get(condition)
        threshold = self.program.scalar(test.inputs[1]) if test and test.kind == "greater" else None
        if test is None or threshold is None:
            return None
        beta = (self.polynomial(test.inputs[0], x, None) or {}).get((1, 0), 0.0)
        if not is_softplus(beta, threshold) or not _same(
            self.polynomial(test.inputs[0], x, None), {(1, 0): beta}
        ):
            return None
        for t in self.ancestors(smooth):
            inner = self.producer.get(t)
            if (
                inner is None
                or inner.kind != "activation"
                or inner.attributes["activation"].spec != "softplus:1.0"
            ):
                continue
            if _same(self.polynomial(inner.inputs[0], x, None), {(1, 0): beta}) and _same(
                self.polynomial(smooth, x, t), {(0, 1): 1.0 / beta}
            ):
                return x, beta
        return None

    def _find_hardswish(self, op: Op) -> tuple[Op, str, str] | None:
        """x * clamp(h (x + 3) / 6, 0, h) / h, for h = 1 (hardsigmoid) or 6 (relu6)."""
        low, high = op.attributes["low"], op.attributes["high"]
        if low != 0 or not high:
            return None
        slope, offset = op.attributes.get("slope", 1.0), op.attributes.get("offset", 0.0)
        for x in self.ancestors(op.inputs[0]):
            inner = self.polynomial(op.inputs[0], x, None) or {}
            inner = _add({power: slope * value for power, value in inner.items()}, {(0, 0): offset}, 1.0)
            if not _same(inner, {(1, 0): high / 6.0, (0, 0): high / 2.0}):
                continue
            for root in self.descendants(op.output):
                if _same(self.polynomial(root.output, x, op.output), {(1, 1): 1.0 / high}):
                    return root, x, "hardswish"
        return None

    def find(self, op: Op) -> tuple[Op, str, str] | None:
        """(root operator, x, activation) of a pattern whose inner function is ``op``."""
        if op.kind == "clamp":
            return self._find_hardswish(op)
        function = op.kind if op.kind == "erf" else ""
        if op.kind == "activation":
            function = op.attributes["activation"].spec
        for pattern in (p for p in _PATTERNS if p.function == function):
            for x in self.ancestors(op.inputs[0]):
                if not _same(self.polynomial(op.inputs[0], x, None), pattern.inner):
                    continue
                for root in self.descendants(op.output):
                    if _same(self.polynomial(root.output, x, op.output), pattern.outer):
                        return root, x, pattern.activation
        return None


def _same(found: Polynomial | None, wanted: Polynomial) -> bool:
    # Exporters round the constants to float32; a wrong formula differs by far more than that.
    if found is None:
        return False
    powers = {power for power, value in found.items() if abs(value) > 1e-12} | set(wanted)
    return all(isclose(found.get(p, 0.0), wanted.get(p, 0.0), rel_tol=1e-5) for p in powers)


def rewrite(program: Program) -> None:
    """Replace the written-out activations of ``program`` by activation operators, in place."""
    program.prune()
    position, matcher = 0, _Matcher(program)
    while position < len(program.ops):
        op = program.ops[position]
        found = matcher.find(op)
        guarded = matcher.find_softplus(op)
        if found is not None:
            root, x = found[:2]
            kind = found[2] if found[2] == "hardswish" else "activation"
            attributes = {} if kind == "hardswish" else {"activation": activations.make(found[2])}
        elif guarded is not None:
            root, x, kind = op, guarded[0], "activation"
            attributes = {"activation": activations.make("softplus", guarded[1])}
        else:
            position += 1
            continue
        folded = Op(kind, f"{op.operator} pattern", root.name, (x,), root.output, attributes)
        program.ops[program.ops.index(root)] = folded
        program.prune()
        position, matcher = 0, _Matcher(program)
