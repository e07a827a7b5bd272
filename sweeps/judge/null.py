"""Test 2, null: the metric sees more than matrices without the structure show.

Two kinds of matrices are compared: random singular vectors with the same spectrum, and rows whose entries are shuffled,
each row by itself, which keeps the lengths of rows and destroys their directions.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import stats

from geometry.probe import summarize
from geometry.svd import right_singular
from sweeps.judge.finding import SUITE, Finding, by_limit, untold
from sweeps.judge.matrices import Matrix, Metrics, not_recomputed, variant

NAME = "null"
Variant = Callable[[Array], Array]
DRAWS = 39  # outside all of them: p = 2 / 40
_LEAST = 6  # runs: with 5, the interval of 5 of 5 reaches below a half
_MOST_ROWS = 1024
# Relative to the value: differences below it are rounding.
_ROUNDING = 1e-3


def _same_spectrum(key: Array, x_ND: Array) -> Array:
    left, right = jax.random.split(key)
    size = min(x_ND.shape)
    s_D, _ = right_singular(x_ND)
    u_VR, _ = jnp.linalg.qr(jax.random.normal(left, (x_ND.shape[0], size)))
    v_DR, _ = jnp.linalg.qr(jax.random.normal(right, (x_ND.shape[1], size)))
    return jnp.matmul(u_VR * s_D[None, :size], v_DR.T, precision=jax.lax.Precision.HIGHEST)


def _shuffled(key: Array, x_ND: Array) -> Array:
    return jax.random.permutation(key, x_ND, axis=1, independent=True)


_SHUFFLED = "shuffled rows"
NULLS = {"random singular vectors with the same spectrum": _same_spectrum, _SHUFFLED: _shuffled}


def findings(columns: Sequence[str], matrices: Sequence[Matrix], seed: int = 0) -> dict[str, Finding]:
    """Return whether each metric differs from its values on matrices without the structure, in most runs.

    The number is the share of runs in which it is outside the range of DRAWS matrices of each kind, with the interval
    of Clopper and Pearson; PASS if more than half are, FAIL if fewer. A metric of the spectrum alone has the same value
    on matrices of the same spectrum, so only shuffled rows count for it.

    The matrices without structure are made from what is measured: for a gauge-fixed metric, from the gauge-fixed
    unembedding. At most 1,024 of its rows, chosen at random, are used. `matrices` are of one source and final norm.
    """
    if not matrices:
        return {column: not_recomputed(NAME, column) for column in columns}
    metrics = Metrics.of(columns, matrices[0])
    values = [jax.device_get(_values(metrics, _some_rows(m), jax.random.key(seed))) for m in matrices]
    return {
        column: _finding(
            np.array([value[column] for value, _ in values]),
            np.array([[draws[name][column] for name in NULLS] for _, draws in values]),
        )
        if column in metrics.columns
        else not_recomputed(NAME, column)
        for column in columns
    }


def _finding(value_R: np.ndarray, null_RKN: np.ndarray) -> Finding:
    if not (np.isfinite(value_R).all() and np.isfinite(null_RKN).all()):
        return untold(NAME, "it isn't finite on the runs' matrices or on those without their structure")
    difference_RKN = np.abs(null_RKN - value_R[:, None, None])
    size_R = np.maximum(np.abs(value_R), np.abs(null_RKN).max(axis=(1, 2)))
    same_K = (difference_RKN <= _ROUNDING * size_R[:, None, None]).all(axis=(0, 2))
    names = list(NULLS)
    if same_K.all():
        return untold(NAME, "it has the same value on matrices without the structure, as a metric of row lengths has")
    outside_RK = (value_R[:, None] > null_RKN.max(axis=2)) | (value_R[:, None] < null_RKN.min(axis=2))
    outside_R = outside_RK[:, ~same_K].all(axis=1)
    share = stats.binomtest(int(outside_R.sum()), len(outside_R))
    interval = share.proportion_ci()
    compared = " and of ".join(name for name, same in zip(names, same_K, strict=True) if not same)
    spectral = "; it is a function of the spectrum alone" if same_K[0] else ""
    text = f"it is outside the range of {compared} in {outside_R.sum()} of {len(outside_R)} runs{spectral}"
    verdict, remedy = by_limit(interval.low, interval.high, 0.5), ""
    if len(outside_R) < _LEAST:
        text, remedy = f"{text}; a verdict takes {_LEAST} runs", SUITE
    return Finding(NAME, verdict, float(outside_R.mean()), float(interval.low), float(interval.high), text, remedy)


def _some_rows(matrix: Matrix) -> Array:
    rows = matrix.x_ND.shape[0]
    if rows > _MOST_ROWS:
        chosen = np.random.default_rng(0).choice(rows, _MOST_ROWS, replace=False)
        return jnp.asarray(matrix.x_ND[np.sort(chosen)])
    return jnp.asarray(matrix.x_ND)


@functools.partial(jax.jit, static_argnames="metrics")
def _values(metrics: Metrics, x_ND: Array, key: Array) -> tuple[dict[str, Array], dict[str, dict[str, Array]]]:
    """Return the metrics, and by kind of null those of each draw."""
    values: dict[str, Array] = {}
    draws: dict[str, dict[str, Array]] = {name: {} for name in NULLS}
    for target, names in metrics.by_target.items():

        def as_measured(x_ND: Array, target: str = target) -> Array:
            return variant(target, x_ND, metrics.norm)

        y_ND = as_measured(x_ND)

        def measure(y_ND: Array, target: str = target, names: tuple[str, ...] = names) -> dict[str, Array]:
            return {f"{target}/{name}": value for name, value in summarize(y_ND, names, metrics.neighbors).items()}

        def drawn(kind: str, key: Array, y_ND: Array = y_ND, as_measured: Variant = as_measured) -> Array:
            # Shuffling brings back what a projection took away.
            return as_measured(_shuffled(key, y_ND)) if kind == _SHUFFLED else NULLS[kind](key, y_ND)

        values |= measure(y_ND)
        for i, kind in enumerate(NULLS):
            keys = jax.random.split(jax.random.fold_in(key, i), DRAWS)
            draws[kind] |= jax.lax.map(lambda k, d=drawn, m=measure, kind=kind: m(d(kind, k)), keys)
    return values, draws
