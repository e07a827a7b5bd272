"""The corpus "arithmetic": all equations a o b = c of a small group; each run trains on some of them.

The prepared data are one domain without a validation split, since each run chooses the equations it holds out. Tokens
are the group's elements 0, 1 and so on, then "o", "=" and eos.

Source: Power et al. 2022, section 2; paper B (arXiv 2506.01034), whose windows are "a o b =".
"""

import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from olmo_jax.config.data import ArithmeticConfig

if TYPE_CHECKING:
    from olmo_jax.data.tokenizer import Tokenizer

VERSION = "1.0.0"
DOMAIN = "equations"
EOS = "<|endoftext|>"
# Tokens of an equation; in the shard each is followed by eos.
LENGTH = 5
STRIDE = LENGTH + 1
_SYMBOLS = {"add": "+", "subtract": "-", "divide": "/", "permute": "*"}
# Batches are drawn this many at a time, with a seed per block, so that a step's batch depends only on its number.
_BLOCK = 64


class Split(NamedTuple):
    """Indices of the equations that a run trains on, and of those it holds out; int64, ascending."""

    train: np.ndarray
    validation: np.ndarray


def equations(config: ArithmeticConfig) -> np.ndarray:
    """Return all equations, int32 [equations, 5]: the tokens of a, o, b, = and c, sorted by a, then b."""
    n = config.elements
    a_N, b_N = (x.ravel() for x in np.meshgrid(np.arange(n), np.arange(n), indexing="ij"))
    if config.operation == "divide":
        a_N, b_N = a_N[b_N > 0], b_N[b_N > 0]
    c_N = _result(config, a_N, b_N)
    sign_N, equals_N = np.full_like(a_N, n), np.full_like(a_N, n + 1)
    return np.stack([a_N, sign_N, b_N, equals_N, c_N], axis=1).astype(np.int32)


def _result(config: ArithmeticConfig, a_N: np.ndarray, b_N: np.ndarray) -> np.ndarray:
    p = config.modulus
    if config.operation == "add":
        return (a_N + b_N) % p
    if config.operation == "subtract":
        return (a_N - b_N) % p
    if config.operation == "divide":
        inverse_P = np.array([pow(b, -1, p) if b else 0 for b in range(p)])
        return a_N * inverse_P[b_N] % p
    # Permutations in lexicographic order, as ascending numbers in base p.
    permutation_EP = np.array(list(itertools.permutations(range(p))))
    place_value_P = p ** np.arange(p)[::-1]
    product_NP = np.take_along_axis(permutation_EP[a_N], permutation_EP[b_N], axis=1)
    return np.searchsorted(permutation_EP @ place_value_P, product_NP @ place_value_P)


def tokenizer(config: ArithmeticConfig) -> "Tokenizer":
    """Return the tokenizer, with one token per word.

    Words are the elements (numbers, or permutations such as 021), the operation's sign, "=", and eos.
    """
    from tokenizers import Tokenizer as Backend  # slow to import, and only needed to prepare the data
    from tokenizers import models, pre_tokenizers

    from olmo_jax.data.tokenizer import Tokenizer

    p = config.modulus
    names = ["".join(map(str, x)) for x in itertools.permutations(range(p))] if config.operation == "permute" else []
    words = [*(names or map(str, range(p))), _SYMBOLS[config.operation], "=", EOS]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=EOS))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([EOS])
    return Tokenizer(backend, EOS, "data.corpus = 'arithmetic'")


def split(config: ArithmeticConfig, seed: int) -> Split:
    """Return the equations that a run with this data seed trains on, and those it holds out."""
    order = np.random.default_rng([1, seed]).permutation(config.equations)
    return Split(np.sort(order[: config.train_equations]), np.sort(order[config.train_equations :]))


class Batches:
    """A run's batches: `batches[step]` are training equations drawn with replacement, indices, int64 [batch_size]."""

    def __init__(self, config: ArithmeticConfig, batch_size: int, seed: int):
        self._train, self._batch_size, self._seed = split(config, seed).train, batch_size, seed
        self._block = functools.lru_cache(maxsize=2)(self._drawn)

    def __getitem__(self, step: int) -> np.ndarray:
        return self._block(step // _BLOCK)[step % _BLOCK]

    def _drawn(self, block: int) -> np.ndarray:
        random = np.random.default_rng([2, self._seed, block])
        return self._train[random.integers(len(self._train), size=(_BLOCK, self._batch_size))]


def documents(config: ArithmeticConfig) -> Iterator[np.ndarray]:
    """Return the tokens of each equation, uint32 [5], in the order of `equations`."""
    return iter(equations(config).astype(np.uint32))


def sources(config: ArithmeticConfig) -> dict[str, str]:
    """Return what identifies the equations."""
    return {"version": VERSION, "operation": config.operation, "modulus": str(config.modulus)}
