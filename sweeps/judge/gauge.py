"""Test 1, gauge: what no logit can see doesn't move the metric.

Several unembeddings give the same predictions (geometry.gauge), and so do states whose documents are taken in another
order. A metric that tells them apart measures something that has no effect. How far it moves is compared with how much
it differs between runs.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sweeps.judge.finding import CANT_TELL, FAIL, PASS, Finding, untold
from sweeps.judge.matrices import UNEMBEDDING, Matrix, Metrics, not_recomputed

NAME = "gauge"
LIMIT = 0.1  # standard deviations of the metric over runs
_DRAWS = 3


def _shift(key: Array, x_ND: Array) -> Array:
    """Add one vector, as long as a row, to every row."""
    return x_ND + _like_rows(jax.random.normal(key, x_ND.shape[1:]), x_ND)[None, :]


def _ones(key: Array, x_ND: Array) -> Array:
    """Add to all entries of a row one number, drawn for each row; the vector that this adds is half as long as a row.

    Of the states after a LayerNorm without parameters, components sum to zero.
    """
    size = 0.5 * jnp.sqrt(jnp.mean(jnp.square(x_ND)))
    return x_ND + size * jax.random.normal(key, (x_ND.shape[0], 1))


def _permutation(key: Array, x_ND: Array) -> Array:
    """Number the tokens differently, or take the documents in another order."""
    return jax.random.permutation(key, x_ND)


def _rotation(key: Array, x_ND: Array) -> Array:
    """Choose another basis of the residual stream, one that keeps the ones direction, which a LayerNorm singles out.

    The scale of a norm with parameters singles out the axes, so there it isn't the same model.
    """
    width = x_ND.shape[1]
    ones_D = jnp.full(width, width**-0.5)
    draws_DD = jax.random.normal(key, (width, width)).at[:, 0].set(ones_D)
    q_DD, _ = jnp.linalg.qr(draws_DD)  # its first column is the ones direction
    r_DD, _ = jnp.linalg.qr(jax.random.normal(jax.random.fold_in(key, 1), (width - 1, width - 1)))
    inner_DD = jnp.zeros((width, width)).at[0, 0].set(1.0).at[1:, 1:].set(r_DD)
    multiply = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return multiply(x_ND, multiply(multiply(q_DD, inner_DD), q_DD.T))


def _like_rows(x_D: Array, x_ND: Array) -> Array:
    return x_D / jnp.linalg.norm(x_D) * jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x_ND), axis=1)))


# By name, with the norms for which no logit sees it; None: for all.
_Transforms = dict[str, tuple[Callable[[Array, Array], Array], tuple[str, ...] | None]]
TRANSFORMS: _Transforms = {
    "adding one vector to all rows": (_shift, None),
    "adding a constant to the entries of each row": (_ones, ("layer_norm",)),
    "numbering the tokens differently": (_permutation, None),
    "rotating the residual stream": (_rotation, ("layer_norm",)),
}
OF_STATES: _Transforms = {
    "taking the documents in another order": (_permutation, None),
    "rotating the residual stream": (_rotation, ("layer_norm",)),
}
# Of states within the residual stream, where whatever reads the stream subtracts the mean of its components.
OF_LAYERS: _Transforms = OF_STATES | {
    "adding a constant to the components of each state": (_ones, ("layer_norm", "affine_layer_norm")),
}


def findings(
    columns: Sequence[str], matrices: Sequence[Matrix], spreads: Mapping[str, float], seed: int = 0
) -> dict[str, Finding]:
    """Return whether transformations that no logit can see leave each metric as it is.

    The number is the largest change over transformations and draws, in standard deviations of the metric over runs: its
    median over the given runs, with the smallest and largest of them. PASS if it is below LIMIT in all, FAIL if the
    median is above it.

    Args:
      matrices: of one source, shape and final norm. spreads: each metric's standard deviation over runs of it.
    """
    if not matrices:
        return {column: not_recomputed(NAME, column) for column in columns}
    metrics = Metrics.of(columns, matrices[0])
    changes = [jax.device_get(_changes(metrics, jnp.asarray(m.x_ND), jax.random.key(seed))) for m in matrices]
    return {
        column: _finding(spreads[column], {name: [of_run[name][column] for of_run in changes] for name in changes[0]})
        if column in metrics.columns
        else not_recomputed(NAME, column)
        for column in columns
    }


def _finding(spread: float, changes: dict[str, list[float]]) -> Finding:
    if np.isnan(spread):
        return untold(NAME, "its spread takes two runs of one shape in which it is finite")
    if spread == 0:
        return untold(NAME, "the metric has the same value in all runs")
    names = list(changes)
    change_RT = np.array([changes[name] for name in names]).T / spread
    if not np.isfinite(change_RT).all():
        return untold(NAME, f"it isn't finite in {np.sum(~np.isfinite(change_RT).all(axis=1))} runs")
    largest_R = change_RT.max(axis=1)
    median = float(np.median(largest_R))
    verdict = PASS if largest_R.max() <= LIMIT else FAIL if median > LIMIT else CANT_TELL
    most = names[int(np.argmax(np.median(change_RT, axis=0)))]
    text = f"no transformation moves it by more than {largest_R.max():.2g} SD over runs"
    if verdict == FAIL:
        text = f"{most} moves it by {median:.2g} SD over runs, and no prediction"
    elif verdict == CANT_TELL:
        over = int((largest_R > LIMIT).sum())
        text = (
            f"{most} moves it by more than {LIMIT:g} SD over runs in {over} of {len(largest_R)} runs, and no prediction"
        )
    return Finding(NAME, verdict, median, float(largest_R.min()), float(largest_R.max()), text)


def _transforms(metrics: Metrics) -> _Transforms:
    if metrics.source == UNEMBEDDING:
        return TRANSFORMS
    return OF_LAYERS if metrics.source.startswith("layer_") and metrics.norm_at == "before" else OF_STATES


@functools.partial(jax.jit, static_argnames="metrics")
def _changes(metrics: Metrics, x_ND: Array, key: Array) -> dict[str, dict[str, Array]]:
    """Return the largest change over draws, by transformation and metric."""
    before = metrics(x_ND)
    largest: dict[str, dict[str, Array]] = {}
    for i, (name, (transform, norms)) in enumerate(_transforms(metrics).items()):
        if norms is None or metrics.norm in norms:
            keys = jax.random.split(jax.random.fold_in(key, i), _DRAWS)
            after = jax.lax.map(lambda k, transform=transform: metrics(transform(k, x_ND)), keys)
            largest[name] = jax.tree.map(lambda after_N, at: jnp.max(jnp.abs(after_N - at)), after, before)
    return largest
