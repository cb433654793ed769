"""Changes of bytes and of JSON that know no format."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

Rng = np.random.Generator

INTEGERS = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**31 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320),
    *(1e308, float("nan"), float("inf"), -float("inf"), "", "a", "0", "1e999", "nan", "input", "bias", "\ud800", "\0", "../../x"),
    *("relu", "elu:-1", "elu:nan", "softplus:0", "x" * 5000, [], [[]], [None], [0], [-1], [2**40, 2**40], {}, {"a": 1}),
)  # fmt: skip


def pick(rng: Rng, choices: Any) -> Any:
    """One of ``choices``."""
    return choices[int(rng.integers(len(choices)))]


def integer_bytes(rng: Rng) -> bytes:
    """A boundary value as 1, 2, 4 or 8 bytes of either order, give or take one."""
    size = int(pick(rng, (1, 2, 4, 8)))
    value = (pick(rng, INTEGERS) + int(rng.integers(-1, 2))) % 2 ** (8 * size)
    return int(value).to_bytes(size, pick(rng, ("little", "big")))


def _flip(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    content[at] ^= 1 << int(rng.integers(8))


def _byte(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    content[at] = int(rng.integers(256))


def _integer(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    value = integer_bytes(rng)
    content[at : at + len(value)] = value


def _length(rng: Rng, content: bytearray) -> int:
    return 1 + int(min(len(content), 2 ** rng.uniform(0, 10)))


def _remove(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    del content[at : at + _length(rng, content)]


def _duplicate(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    block = content[at : at + _length(rng, content)]
    content[at:at] = block * int(rng.integers(1, 4))


def _move(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    to, size = int(rng.integers(len(content))), _length(rng, content)
    block = content[at : at + size]
    content[to : to + len(block)] = block


def _fill(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    size = min(_length(rng, content), len(content) - at)
    content[at : at + size] = bytes([pick(rng, (0, 255, int(rng.integers(256))))]) * size


def _truncate(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    del content[at:]


def _splice(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    if other:
        start = int(rng.integers(len(other)))
        size = _length(rng, content)
        content[at : at + size] = other[start : start + size]


def _append(content: bytearray, at: int, rng: Rng, other: bytes) -> None:
    content += rng.bytes(int(rng.integers(1, 64)))


_CHANGES = (_flip, _flip, _byte, _byte, _integer, _integer, _integer, _remove, _duplicate, _move, _fill, _truncate, _splice, _append)  # fmt: skip


def mutate_bytes(content: bytes, rng: Rng, other: bytes = b"", most: int = 6) -> bytes:
    """``content`` with 1 to ``most`` changes; ``other`` is what blocks are spliced from."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, most + 1))):
        if not changed:
            return bytes(changed)
        # Sizes, counts and signatures are mostly at the start or the end.
        places = (int(rng.integers(len(changed))), int(len(changed) * rng.random() ** 4), len(changed) - 1 - int(len(changed) * rng.random() ** 4))  # fmt: skip
        pick(rng, _CHANGES)(changed, max(0, min(pick(rng, places), len(changed) - 1)), rng, other)
    return bytes(changed)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _paths(item, (*path, key))
    return found


def _changed_value(value: Any, rng: Rng) -> Any:
    if isinstance(value, bool) or rng.random() < 0.5:
        return pick(rng, VALUES)
    if isinstance(value, int):
        return pick(
            rng, (value + 1, value - 1, -value, value * 2, float(value), str(value), pick(rng, INTEGERS))
        )
    if isinstance(value, float):
        return pick(rng, (-value, value * 1e10, value + 1e-9, int(min(abs(value), 1e9)), str(value)))
    if isinstance(value, str):
        return pick(rng, (value + "x", value[:-1], value[::-1], value * 3, value.upper(), [value]))
    if isinstance(value, list):
        return pick(rng, (value[::-1], value + value[:1], value[:-1], [value], value * 2))
    return pick(rng, ([value], {**value, "more": value} if isinstance(value, dict) else value))


def mutate_json(value: Any, rng: Rng) -> Any:
    """A parsed JSON ``value`` (which is changed) with a few values, keys or elements changed."""
    for _ in range(int(rng.integers(1, 4))):
        path = pick(rng, _paths(value))
        if not path:
            value = _changed_value(value, rng) if rng.random() < 0.2 else value
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        key = path[-1]
        if rng.random() < 0.2:
            del holder[key]
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[str(pick(rng, VALUES))[:50]] = holder[key]
        else:
            holder[key] = _changed_value(holder[key], rng)
    return value


def json_bytes(text: bytes, rng: Rng) -> bytes:
    """JSON ``text`` changed in its values, or now and then in its syntax."""
    way = rng.random()
    if way < 0.1:
        return mutate_bytes(text, rng)
    if way < 0.12:
        return pick(
            rng, (b"[" * 100_000, b'{"a":' * 100_000, b'{"format_version": 1, "sizes": ' + b"[" * 100_000)
        )
    changed = mutate_json(json.loads(text), rng)
    return json.dumps(changed).encode()
