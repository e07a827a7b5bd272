"""Rank columns, and compute p-values and intervals of rank correlations in closed form.

Letters: N rows, C columns.
"""

import numpy as np
from scipy import stats

from sweeps.analysis.bootstrap import ROUNDING


def ranks(x_NC: np.ndarray) -> np.ndarray:
    """Return the ranks within each column, with average ranks for ties."""
    return stats.rankdata(x_NC, axis=0) if x_NC.size else x_NC


def unit(x_NC: np.ndarray) -> np.ndarray:
    """Centre columns and scale them to norm 1; a constant column becomes zeros."""
    x_NC = x_NC - x_NC.mean(axis=0)
    norms_C = np.linalg.norm(x_NC, axis=0)
    return np.where(norms_C > ROUNDING, x_NC / np.maximum(norms_C, ROUNDING), 0.0)


def p_values(r: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """Return two-sided p-values of correlations by Student's t; NaN without degrees of freedom."""
    dof = np.where(dof > 0, dof, np.nan)
    with np.errstate(divide="ignore"):
        return 2 * stats.t.sf(np.abs(r) * np.sqrt(dof / (1 - r**2)), dof)


def q_values(p_N: np.ndarray) -> np.ndarray:
    """Return Benjamini and Hochberg's q-values of the p-values that are finite; NaN for the others."""
    q_N, finite_N = np.full(len(p_N), np.nan), np.isfinite(p_N)
    if finite_N.any():
        q_N[finite_N] = stats.false_discovery_control(p_N[finite_N])
    return q_N


def fisher_interval(r: np.ndarray, n: float, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 95 % intervals by Fisher's z with the Bonett-Wright variance, of n independent rows and k controls.

    NaN if n is too small. As z is infinite at |r| = 1, |r| is limited to 1 minus half a step of an untied Spearman's
    rho, 6 / (n^3 - n) [ours].
    """
    if n - 3 - k <= 0:
        return np.full_like(r, np.nan), np.full_like(r, np.nan)
    limit = 1 - 6 / (n**3 - n)
    z = np.arctanh(np.clip(r, -limit, limit))
    half = stats.norm.ppf(0.975) * np.sqrt((1 + r**2 / 2) / (n - 3 - k))
    return np.minimum(np.tanh(z - half), r), np.maximum(np.tanh(z + half), r)
