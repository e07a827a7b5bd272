"""Regressions that choose their penalties on the fitted rows, for predictions out of fold.

Each takes x_NK, y_NE, groups_N and x_MK and returns the prediction [M, E]; targets are fitted separately. Columns of x
have variance 1, except the indicators of categories. The first `n_first` are the baseline; each regression can leave
out the others, so that uninformative columns cost little.

Letters: N rows fitted, M rows predicted, K regressors, E targets, A penalties, Q directions, R noise ratios, T trees,
C choices of columns.
"""

import itertools
from collections.abc import Callable

import numpy as np

from sweeps.analysis.folds import shuffled_folds

# Ridge: penalties added to the sum of squares of a column, as multiples of the number of rows.
PENALTIES_A = np.logspace(-4, 2, 13)
# Gaussian process: length scales in units of the root mean squared distance of two rows, and noise variance over signal
# variance. Columns with an infinite length scale have no influence.
LENGTHS = (0.35, 0.7, 1.4, 2.8, 5.6, np.inf)
NOISES_R = np.logspace(-4, 2, 13)
# Boosting: depth of a tree, maximum number of trees, learning rate, and minimum number of rows in a leaf.
DEPTH, TREES, RATE, LEAF = 3, 30, 0.3, 3

RIDGE_FOLDS, BOOSTING_FOLDS = 4, 3

# A function of x_NK, y_NE, x_MK and a number of steps A that returns the predictions after each step, that is, with
# each penalty or number of trees [A, M, E].
Path = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def ridge(x_NK: np.ndarray, y_NE: np.ndarray, groups_N: np.ndarray, x_MK: np.ndarray, n_first: int) -> np.ndarray:
    """Predict by ridge regression with the one of 13 penalties that has the least error in grouped folds.

    The same folds choose between all columns and only the first `n_first`: a penalty that suppresses a dozen columns of
    noise would also suppress the others [ours].
    """
    return _by_inner_folds(_ridge_path, len(PENALTIES_A), RIDGE_FOLDS, x_NK, y_NE, groups_N, x_MK, n_first)


def _by_inner_folds(
    path: Path,
    steps: int,
    n_folds: int,
    x_NK: np.ndarray,
    y_NE: np.ndarray,
    groups_N: np.ndarray,
    x_MK: np.ndarray,
    n_first: int,
) -> np.ndarray:
    """Predict by the step of a path, and the first or all columns, with the least error in grouped folds: [M, E]."""
    # The groups may have gaps, as some are in the outer fold.
    fold_N = shuffled_folds(np.unique(groups_N, return_inverse=True)[1].reshape(-1), n_folds, 1)[0]
    choices = sorted({n_first, x_NK.shape[1]} - {0})
    error_CAE = np.zeros((len(choices), steps, y_NE.shape[1]))
    for fold, (c, k) in itertools.product(np.unique(fold_N), enumerate(choices)):
        test_N = fold_N == fold
        predicted_AME = path(x_NK[~test_N, :k], y_NE[~test_N], x_NK[test_N, :k], steps)
        error_CAE[c] += np.sum((predicted_AME - y_NE[test_N]) ** 2, axis=1)
    predicted = []
    for e, error_CA in enumerate(np.moveaxis(error_CAE, -1, 0)):
        c, a = np.unravel_index(error_CA.argmin(), error_CA.shape)
        k = choices[c]
        predicted.append(path(x_NK[:, :k], y_NE[:, [e]], x_MK[:, :k], int(a) + 1)[-1, :, 0])
    return np.stack(predicted, axis=1)


def _ridge_path(x_NK: np.ndarray, y_NE: np.ndarray, x_MK: np.ndarray, steps: int) -> np.ndarray:
    """Return the predictions with each of the first penalties, [A, M, E]."""
    mean_K, mean_E = x_NK.mean(axis=0), y_NE.mean(axis=0)
    u_NQ, s_Q, v_QK = np.linalg.svd(x_NK - mean_K, full_matrices=False)
    shrunk_AQ = s_Q / (s_Q**2 + len(x_NK) * PENALTIES_A[:steps, None])
    along_QE, place_MQ = u_NQ.T @ (y_NE - mean_E), (x_MK - mean_K) @ v_QK.T
    return mean_E + place_MQ @ (shrunk_AQ[:, :, None] * along_QE)


def gaussian_process(
    x_NK: np.ndarray, y_NE: np.ndarray, groups_N: np.ndarray, x_MK: np.ndarray, n_first: int
) -> np.ndarray:
    """Predict by the mean of a Gaussian process with a squared exponential kernel, white noise and the rows' mean.

    The first `n_first` columns share one length scale and the others another, so that columns of noise can be ignored
    without ignoring the first. scikit-learn's kernel has one length scale for all columns or one for each; with two,
    the likelihood has so few parameters that a grid search is reliable and fast [ours]. Length scales and noise
    maximise the marginal likelihood, with the optimal signal variance for each.

    Source: Rasmussen & Williams 2006, algorithm 2.1 and equation 5.8; checked against scikit-learn's.
    """
    mean_E = y_NE.mean(axis=0)
    blocks = [block for block in np.split(np.arange(x_NK.shape[1]), [n_first]) if len(block)]
    fitted = [_squared_distances(x_NK[:, block], x_NK[:, block]) for block in blocks]
    sizes = [max(float(d_NN.mean()) * len(d_NN) / max(len(d_NN) - 1, 1), 1e-12) for d_NN in fitted]
    best_E = np.full(y_NE.shape[1], -np.inf)
    chosen: list[tuple[tuple[float, ...], np.ndarray]] = [((), np.zeros(0))] * y_NE.shape[1]
    for lengths in itertools.product(LENGTHS, repeat=len(blocks)):
        value_Q, vector_NQ = np.linalg.eigh(_kernel(fitted, sizes, lengths))
        noisy_RQ = np.maximum(value_Q, 0) + NOISES_R[:, None]
        along_QE = vector_NQ.T @ (y_NE - mean_E)
        signal_RE = (1 / noisy_RQ) @ along_QE**2 / len(x_NK)
        log_spread_R1 = np.log(noisy_RQ).sum(axis=1, keepdims=True)
        likelihood_RE = -len(x_NK) / 2 * np.log(np.maximum(signal_RE, np.finfo(float).tiny)) - log_spread_R1 / 2
        for e, r in enumerate(likelihood_RE.argmax(axis=0)):
            if likelihood_RE[r, e] > best_E[e]:
                best_E[e] = likelihood_RE[r, e]
                chosen[e] = (lengths, vector_NQ @ (along_QE[:, e] / noisy_RQ[r]))
    across = [_squared_distances(x_MK[:, block], x_NK[:, block]) for block in blocks]
    return mean_E + np.stack([_kernel(across, sizes, lengths) @ weight_N for lengths, weight_N in chosen], axis=1)


def _squared_distances(x_MK: np.ndarray, x_NK: np.ndarray) -> np.ndarray:
    products_MN = x_MK @ x_NK.T
    distances_MN = np.sum(x_MK**2, axis=1)[:, None] + np.sum(x_NK**2, axis=1) - 2 * products_MN
    return np.maximum(distances_MN, 0)


def _kernel(distances: list[np.ndarray], sizes: list[float], lengths: tuple[float, ...]) -> np.ndarray:
    """Return the product of the blocks' squared exponentials, [M, N]."""
    parts = zip(distances, sizes, lengths, strict=True)
    return np.exp(-sum(d_MN / (2 * size * length**2) for d_MN, size, length in parts))


def boosting(x_NK: np.ndarray, y_NE: np.ndarray, groups_N: np.ndarray, x_MK: np.ndarray, n_first: int) -> np.ndarray:
    """Predict by gradient boosting of trees of depth 3; their number, up to 30, has the least error in grouped folds.

    The same folds choose between all columns and only the first `n_first`, as with a hundred rows a dozen columns of
    noise cost trees much of their R2 [ours]. The predictions are those of scikit-learn's GradientBoostingRegressor.
    """
    # Imported late, as every command imports this package.
    import sklearn

    # The validation of arguments would take a third of the time of such small fits.
    with sklearn.config_context(skip_parameter_validation=True, assume_finite=True):
        return _by_inner_folds(_boosting_path, TREES, BOOSTING_FOLDS, x_NK, y_NE, groups_N, x_MK, n_first)


def _boosting_path(x_NK: np.ndarray, y_NE: np.ndarray, x_MK: np.ndarray, trees: int) -> np.ndarray:
    """Return the predictions after each tree of gradient boosting with squared error, [T, M, E].

    They equal the stages of scikit-learn's GradientBoostingRegressor bit for bit, in half the time, as that class
    validates the rows' weights, which are all 1, for each tree.
    """
    from sklearn.tree import DecisionTreeRegressor

    x_NK, x_MK = (np.ascontiguousarray(x, dtype=np.float32) for x in (x_NK, x_MK))  # the type that trees use
    stages_TME = np.empty((trees, len(x_MK), y_NE.shape[1]))
    for e, y_N in enumerate(y_NE.T):
        draws = np.random.RandomState(0)  # for the order in which columns are tried
        fitted_N, predicted_M = np.full(len(x_NK), y_N.mean()), np.full(len(x_MK), y_N.mean())
        for t in range(trees):
            tree = DecisionTreeRegressor(max_depth=DEPTH, min_samples_leaf=LEAF, random_state=draws)
            tree.fit(x_NK, y_N - fitted_N, check_input=False)
            fitted_N = fitted_N + RATE * tree.tree_.predict(x_NK)[:, 0]
            predicted_M = predicted_M + RATE * tree.tree_.predict(x_MK)[:, 0]
            stages_TME[t, :, e] = predicted_M
    return stages_TME
