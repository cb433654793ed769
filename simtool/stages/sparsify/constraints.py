"""What a user asks of the coefficients beside kappa: signs, a box, a mask; and weights of the samples.

Signs and the box hold for every coefficient but those of the bias. A mask says which coefficients there may be at all: a
.npy of zeros and ones (n + q, n + p), rows of [Z; Y] by features [X; U], or a model whose non-zeros are taken. Masks and
weights are read once, kept in the run folder, and known to the spec by their content, never by their path.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simtool.engines.shards import read_shard, write_shard
from simtool.errors import FormatError, InputError, OptionError
from simtool.hdf5 import kind_of
from simtool.model import load_model

SIGNS = ("nonnegative", "nonpositive")
_MOST_WEIGHT = 1e12


@dataclass(frozen=True)
class Constraints:
    """``mask`` (n + q, n + p) bool and ``sample_weight`` (m,) float64, None where not asked for."""

    mask: np.ndarray | None = None
    sample_weight: np.ndarray | None = None

    @property
    def mask_sha256(self) -> str | None:
        """What the spec says of the mask."""
        return _sha256(self.mask)

    @property
    def weights_sha256(self) -> str | None:
        """What the spec says of the weights."""
        return _sha256(self.sample_weight)

    def save(self, path: Path) -> None:
        """Keep them at ``path`` for the workers of this run."""
        arrays = {}
        if self.mask is not None:
            arrays["mask"] = np.packbits(self.mask, axis=1)
            arrays["features"] = np.array(self.mask.shape[1])
        if self.sample_weight is not None:
            arrays["sample_weight"] = self.sample_weight
        write_shard(path, arrays)


NONE = Constraints()


def _sha256(array: np.ndarray | None) -> str | None:
    return None if array is None else hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def load(path: Path) -> Constraints:
    """What :meth:`Constraints.save` wrote; read once per process."""
    return _load(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: Path, modified: int) -> Constraints:
    del modified  # part of the key
    stored = read_shard(path)
    mask = None
    if "mask" in stored:
        mask = np.unpackbits(stored["mask"], axis=1, count=int(stored["features"])).astype(bool)
    return Constraints(mask, stored.get("sample_weight"))


def read(mask: str | None, weights: str | None, rows: int, features: int, samples: int) -> Constraints:
    """What the files named by --mask and --weight-samples hold. Raises InputError, FormatError or OptionError."""
    return Constraints(
        None if mask is None else _read_mask(Path(mask), rows, features),
        None if weights is None else _read_weights(Path(weights), samples),
    )


def _read_array(path: Path, option: str, shape: tuple[int, ...], holds: str) -> np.ndarray:
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder. It must be {holds}.")
    if not path.is_file():
        raise InputError(f"{option} {path}: there is no such file. It must be {holds}.")
    try:
        with np.errstate(over="ignore"):  # of a header that claims more than can be
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy and its tokenizer raise many types for a damaged header
        raise FormatError(f"{option} {path} is no readable .npy file. It must be {holds}.") from error
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype.kind not in "biuf":
        seen = f"{array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise OptionError(f"{option} {path} holds {seen}. It must be {holds}.")
    return array


def _read_mask(path: Path, rows: int, features: int) -> np.ndarray:
    holds = (
        f"a .npy of zeros and ones, {rows} x {features} (rows of [Z; Y] by features [X; U]), or a model with as many states, "
        "inputs and outputs"
    )
    place = path / "model.h5" if path.is_dir() else path
    if place.is_file() and kind_of(place) == "model":
        model = load_model(place)
        mask = np.zeros((model.n + model.q, model.n + model.p), dtype=bool)
        for i in range(mask.shape[0]):
            mask[i, model.row(i)[0]] = True
        if mask.shape != (rows, features):
            raise OptionError(
                f"--mask {path} is a model of {mask.shape[0]} rows and {mask.shape[1]} features. It must be {holds}."
            )
        return mask
    array = _read_array(place, "--mask", (rows, features), holds)
    if not np.isin(array, (0, 1)).all():
        raise OptionError(f"--mask {path} holds numbers other than 0 and 1. It must be {holds}.")
    return np.asarray(array, dtype=bool)


def _read_weights(path: Path, samples: int) -> np.ndarray:
    holds = f"a .npy of {samples} numbers, one a sample in the order of the states file, finite and >= 0, not all 0"
    weights = np.asarray(_read_array(path, "--weight-samples", (samples,), holds), dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        worst = weights[~(np.isfinite(weights) & (weights >= 0))]
        raise OptionError(
            f"--weight-samples {path} holds {worst[0] if worst.size else 'only zeros'}. It must be {holds}."
        )
    if weights.max() > _MOST_WEIGHT:
        raise OptionError(
            f"--weight-samples {path} holds {weights.max():g}; at most {_MOST_WEIGHT:g} is allowed."
        )
    return weights


def parse_box(box: str) -> tuple[float, float]:
    """``LO,HI`` as two numbers with LO <= 0 <= HI, LO < HI. Raises OptionError."""
    try:
        low, high = (float(part) for part in box.split(","))
    except ValueError:
        low, high = np.nan, np.nan
    if not (low <= 0.0 <= high and low < high):
        raise OptionError(
            f"--box must be LO,HI with LO <= 0 <= HI and LO < HI (every coefficient may be 0), got {box!r}. For example "
            "--box -1,1."
        )
    return low, high


def bounds(
    sign: str | None, box: str | None, exempt: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """lower and upper (d,) of a row's features; those that are ``exempt`` (d,) bool (the bias) have none."""
    if sign is None and box is None:
        return None, None
    low, high = (-np.inf, np.inf) if box is None else parse_box(box)
    if sign == "nonnegative":
        low = 0.0
    elif sign == "nonpositive":
        high = 0.0
    return np.where(exempt, -np.inf, low), np.where(exempt, np.inf, high)


def pieces(allowed: np.ndarray | None, smooth: np.ndarray, rows: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows (indices) and the features (indices) of the designs they share, so that a mask never hides a smooth feature.

    ``smooth`` (d,) bool: features that are eliminated for all rows of a design at once (:class:`simtool.problem.RowSet`),
    so rows whose masks differ there need designs of their own. ``allowed`` is (r, d) bool or None, r = ``rows``.
    """
    if allowed is None or bool(allowed[:, smooth].all()):
        return [(np.arange(rows), np.arange(smooth.size))]
    patterns, pattern_of = np.unique(allowed[:, smooth], axis=0, return_inverse=True)
    out = []
    for index, pattern in enumerate(patterns):
        features = ~smooth
        features[smooth] = pattern
        out.append((np.flatnonzero(pattern_of.reshape(-1) == index), np.flatnonzero(features)))
    return out
