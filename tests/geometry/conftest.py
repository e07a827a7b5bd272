"""Matrices of known kinds, shared by the tests of geometry.

Drawn in float64, rounded to float32 and returned in float64, so that an oracle and the library get the same numbers.
"""

import numpy as np
import pytest


def orthonormal(rows, columns, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))
    return q


def with_spectrum(rows, columns, values, seed=0):
    """A matrix with these singular values, in random directions."""
    u, v = orthonormal(rows, len(values), seed), orthonormal(columns, len(values), seed + 1)
    return (u * np.asarray(values)) @ v.T


def rounded(x):
    return np.asarray(x, np.float32).astype(np.float64)


def _matrices():
    rng = np.random.default_rng(7)
    gaussian = 0.2 * rng.standard_normal((600, 48))
    return {
        "gaussian": gaussian,
        "common vector": gaussian + rng.standard_normal((1, 48)),
        "power law": with_spectrum(600, 48, 30.0 / np.arange(1, 49)),
        "low rank": with_spectrum(600, 48, np.linspace(20, 5, 12)),
        "nearly singular": with_spectrum(600, 48, np.geomspace(30, 3e-4, 48)),
        "square": rng.standard_normal((40, 40)),
        "wide": 0.3 * rng.standard_normal((24, 96)),
    }


MATRICES = {name: rounded(x) for name, x in _matrices().items()}


@pytest.fixture(params=MATRICES, ids=lambda name: name.replace(" ", "_"))
def matrix(request):
    """One [N, D] float64 matrix of each kind in turn, exact in float32."""
    return MATRICES[request.param]


@pytest.fixture
def matrices():
    """All of them by name."""
    return MATRICES


@pytest.fixture
def make_matrix():
    """`make_matrix(rows, columns, singular_values, seed=0)`, exact in float32 and given in float64."""
    return lambda *args, **kwargs: rounded(with_spectrum(*args, **kwargs))
