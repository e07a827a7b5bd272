import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geometry import dimension, isotropy, probe, spectrum
from geometry.gauge import gauge_fix


@jax.jit
def values_of(w_VD):
    """Return every built-in metric, computed with the library's functions."""
    s_D = spectrum.singular_values(w_VD)
    local = dimension.distribution(dimension.local_two_nn(w_VD, 12, convention="skdim034"))
    rows, width = w_VD.shape
    return (
        {
            "effective_rank_percent": 100 * spectrum.effective_rank(s_D) / width,
            "energy_top_1": spectrum.energy_top(s_D, 1),
            "energy_top_10": spectrum.energy_top(s_D, 10),
            "two_nn": dimension.two_nn(w_VD),
            "two_nn_mle": dimension.two_nn(w_VD, estimator="mle"),
            "levina_bickel": dimension.levina_bickel(w_VD),
            "local_two_nn": local.mean,
            "local_two_nn_std": local.std,
            "local_two_nn_median": local.median,
            "points": rows,
            "rank_cap": min(rows - 1, width),
            "duplicates": 0,
            **{f"local_two_nn_q{percent}": getattr(local, f"q{percent}") for percent in (5, 10, 25, 75, 90, 95)},
        }
        | {
            name: getattr(spectrum, name)(s_D) if hasattr(spectrum, name) else getattr(isotropy, name)(w_VD)
            for name in probe.METRICS
            if hasattr(spectrum, name) or hasattr(isotropy, name)
        }
        | {"alpha_req": spectrum.alpha_req(jnp.linalg.eigvalsh(jnp.cov(w_VD, rowvar=False))[-min(w_VD.shape) :])}
    )


@pytest.mark.parametrize("kind", ["common vector", pytest.param("wide", marks=pytest.mark.slow)])
def test_every_metric_is_the_library_function_of_that_name(matrices, kind):
    w_VD = matrices[kind][:300]
    summary = probe.summarize(w_VD, tuple(probe.METRICS), n_neighbors=12)
    assert list(summary) == list(probe.METRICS)
    expected = values_of(w_VD)
    for name, value in summary.items():
        assert value.shape == ()
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-4), name


def test_the_unembedding_set_is_the_default(matrices):
    assert tuple(probe.summarize(matrices["gaussian"])) == (
        "effective_rank",
        "effective_rank_percent",
        "stable_rank",
        "mean_cosine",
        "partition_isotropy",
    )


def test_measuring_works_inside_jit_vmap_and_other_transformations(matrices):
    stack = np.stack([matrices["gaussian"], matrices["common vector"]])

    def measure(w):
        return probe.summarize(gauge_fix(w, "layer_norm"), metrics=("effective_rank", "mean_cosine", "isoscore"))

    together = jax.jit(jax.vmap(measure))(stack)
    for i, w_VD in enumerate(stack):
        for name, value in measure(w_VD).items():
            np.testing.assert_allclose(together[name][i], value, rtol=1e-4, atol=1e-7)


def test_spectral_metrics_and_isotropy_share_one_decomposition(matrices):
    names = [name for name in probe.METRICS if hasattr(spectrum, name)] + ["partition_isotropy"]
    assert len(names) > 10

    def decompositions(names):
        program = jax.jit(functools.partial(probe.summarize, metrics=tuple(names))).lower(matrices["gaussian"])
        return [program.as_text().count(f"{routine}_ffi(") for routine in ("geqrf", "gesdd", "syevd")]

    assert decompositions(names) == decompositions(["effective_rank"])


def test_matrices_of_one_shape_share_a_compilation(matrices):
    w_VD = matrices["square"]
    probe.summarize(w_VD, ("stable_rank",))
    compiled = probe._measure._cache_size()
    probe.summarize(2 * w_VD, ["stable_rank"])
    assert probe._measure._cache_size() == compiled


def test_a_decorated_function_becomes_a_metric(registry, matrices):
    @probe.metric
    def row_norm(measured):
        return jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

    expected = np.linalg.norm(matrices["gaussian"], axis=1).mean()
    assert float(probe.summarize(matrices["gaussian"], ("row_norm",))["row_norm"]) == pytest.approx(expected, rel=1e-5)

    @probe.metric
    def row_norm(measured):  # noqa: F811  a notebook cell, changed and run again
        return 2 * jnp.mean(jnp.linalg.norm(measured.x_ND, axis=1))

    value = probe.summarize(matrices["gaussian"], ("row_norm",))["row_norm"]
    assert float(value) == pytest.approx(2 * expected, rel=1e-5)


def test_a_name_that_is_taken_is_refused(registry):
    with pytest.raises(ValueError, match="'stable_rank'.*already defined in geometry.spectrum"):

        @probe.metric
        def stable_rank(measured):
            return jnp.float32(0)


def test_an_unknown_metric_is_refused_with_the_nearest_name(matrices):
    with pytest.raises(ValueError, match="'efective_rank'; the nearest is 'effective_rank'"):
        probe.summarize(matrices["gaussian"], ("efective_rank",))
    with pytest.raises(ValueError, match=r"\('stable_rank',\)"):
        probe.summarize(matrices["gaussian"], "stable_rank")


def test_nan_gives_nan_metrics_but_finite_counts(matrices):
    w_VD = matrices["gaussian"][:100].copy()
    w_VD[0, 0] = np.nan
    for name, value in probe.summarize(w_VD, tuple(probe.METRICS), n_neighbors=12).items():
        assert np.isnan(value) == (name not in probe.COUNTS), name
    zero = probe.summarize(np.zeros((20, 4)), ("effective_rank", "partition_isotropy", "duplicates"))
    assert float(zero["effective_rank"]) == 0
    assert float(zero["partition_isotropy"]) == pytest.approx(1)
    assert float(zero["duplicates"]) == 19


def test_one_function_gives_several_metrics_and_is_computed_once(registry, matrices):
    calls = []

    @probe.metric(values={"": "Mean norm of the rows.", "_std": "Standard deviation of the norms."})
    def row_norm(measured):
        calls.append(measured)
        norm_N = jnp.linalg.norm(measured.x_ND, axis=1)
        return jnp.mean(norm_N), jnp.std(norm_N)

    summary = probe.summarize(matrices["gaussian"], ("row_norm_std", "row_norm"))
    norm_N = np.linalg.norm(matrices["gaussian"], axis=1)
    assert float(summary["row_norm"]) == pytest.approx(norm_N.mean(), rel=1e-5)
    assert float(summary["row_norm_std"]) == pytest.approx(norm_N.std(), rel=1e-4)
    assert len(calls) == 1
    assert registry["row_norm_std"].__doc__ == "Standard deviation of the norms."
    with pytest.raises(ValueError, match="metric 'row_norm_std' of .* is already defined in"):

        @probe.metric
        def row_norm_std(measured):
            return jnp.float32(0)


def test_a_function_decorated_as_count_is_registered_as_a_count(registry):
    @probe.count
    def rows(measured):
        return jnp.float32(measured.x_ND.shape[0])

    assert float(probe.summarize(np.ones((7, 2)), ("rows",))["rows"]) == 7
    assert "rows" in probe.COUNTS


@pytest.mark.slow
def test_gradients_match_differences():
    """Of every metric, against central differences at a step where rounding and curvature are negligible."""
    names = tuple(name for name in probe.METRICS if name not in (*probe.COUNTS, "alpha_req"))
    check_gradients(names, (30, 6))
    check_gradients(("alpha_req",), (60, 30))  # it needs more than 22 columns


def check_gradients(names, shape):
    rng = np.random.default_rng(5)
    # Distinct singular values, and no ties among distances.
    x_ND = jnp.float32(rng.standard_normal(shape) * np.geomspace(3, 1, shape[1]) + 0.3)
    direction = rng.standard_normal(x_ND.shape).astype(np.float32)

    @jax.jit
    def values(x_ND):
        return jnp.stack(list(probe.summarize(x_ND, names, n_neighbors=12).values()))

    gradients = jax.jit(jax.jacrev(values))(x_ND)
    assert np.isfinite(gradients).all()
    coarse, fine = ((values(x_ND + h * direction) - values(x_ND - h * direction)) / (2 * h) for h in (1e-3, 1e-4))
    for i, name in enumerate(names):
        of_distances = name.startswith(("two_nn", "local_two_nn", "levina_bickel"))
        slope = float((fine if of_distances else coarse)[i])
        scale = np.linalg.norm(gradients[i]) * np.linalg.norm(direction) / np.sqrt(direction.size)
        assert float(jnp.sum(gradients[i] * direction)) == pytest.approx(slope, rel=0.02, abs=0.02 * scale), name


@pytest.mark.parametrize("kind", ["low rank", "equal", "zero", "repeated rows"])
@pytest.mark.parametrize("name", ["effective_rank", "stable_rank", "mean_cosine", "partition_isotropy", "isoscore"])
def test_gradients_are_finite_at_degenerate_matrices(matrices, name, kind):
    x_ND = {
        "low rank": matrices["low rank"][:60],
        "equal": np.eye(20, 4),
        "zero": np.zeros((20, 4)),
        "repeated rows": np.repeat(matrices["gaussian"][:8, :4], 3, axis=0),
    }[kind]
    gradient = jax.grad(lambda x: probe.summarize(x, (name,))[name])(jnp.float32(x_ND))
    if (kind, name) not in {("zero", "mean_cosine"), ("zero", "isoscore")}:  # undefined there, and NaN itself
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["effective_rank", "stable_rank", "mean_cosine"])
def test_gradients_of_rank_deficient_matrices_match_differences_within_the_rank(name):
    """Along a path of matrices of the same rank, where the metric is smooth, by differences in float64."""
    rng = np.random.default_rng(8)
    a, b, da, db = (rng.standard_normal(shape) for shape in ((40, 3), (3, 9), (40, 3), (3, 9)))

    def oracle(w):
        s = np.linalg.svd(w, compute_uv=False)[:3]
        u = w / np.linalg.norm(w, axis=1, keepdims=True)
        return {
            "effective_rank": np.exp(-(s / s.sum() * np.log(s / s.sum())).sum()),
            "stable_rank": (s**2).sum() / s[0] ** 2,
            "mean_cosine": ((u @ u.T).sum() - len(u)) / (len(u) * (len(u) - 1)),
        }[name]

    slope = (oracle((a + 1e-5 * da) @ (b + 1e-5 * db)) - oracle((a - 1e-5 * da) @ (b - 1e-5 * db))) / 2e-5
    gradient = jax.grad(lambda x: probe.summarize(x, (name,))[name])(jnp.float32(a @ b))
    assert float(np.sum(gradient * (da @ b + a @ db))) == pytest.approx(slope, rel=2e-3)


def test_every_metric_of_a_stack_equals_that_of_each_matrix(matrices):
    stack = np.stack([matrices["gaussian"][:40, :8], matrices["common vector"][:40, :8]])
    measure = functools.partial(probe.summarize, metrics=tuple(probe.METRICS), n_neighbors=12)
    together = jax.jit(jax.vmap(measure))(stack)
    for i, w_VD in enumerate(stack):
        for name, value in measure(w_VD).items():
            np.testing.assert_allclose(together[name][i], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_an_index_beyond_the_spectrum_is_refused(matrices):
    with pytest.raises(ValueError, match="singular values 1 to"):
        probe.summarize(matrices["gaussian"], places=(1, 10**6))
