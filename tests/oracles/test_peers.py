"""Geometry against installed third-party libraries on the same arrays; `make oracles` runs these."""

import json

import numpy as np
import pytest

from geometry import dimension, isotropy, spectrum
from tests.geometry.conftest import MATRICES
from tests.oracles import peers

pytestmark = pytest.mark.oracle


@pytest.fixture(scope="module")
def live():
    return peers.all_numbers(MATRICES)


def flat(tree, at=""):
    if isinstance(tree, dict):
        return {k: v for name, part in tree.items() for k, v in flat(part, f"{at}/{name}").items()}
    return {at: np.asarray(tree)}


def test_stored_numbers_match_the_installed_libraries(live):
    stored = flat(json.loads(peers.STORED.read_text()))
    said = flat(live)
    assert stored.keys() == said.keys()
    for name, value in said.items():
        np.testing.assert_allclose(
            stored[name], value, rtol=1e-4, err_msg=f"{name}: see peers.py on how to store the numbers anew"
        )


@pytest.mark.parametrize(("rows", "width", "dimensions"), [(2000, 64, 6), (1500, 256, 200)])
def test_local_two_nn_of_a_larger_cloud_matches_scikit_dimension(rows, width, dimensions):
    """The neighbourhoods are identical, so the values agree point by point."""
    rng = np.random.default_rng(3)
    x_ND = (rng.standard_normal((rows, dimensions)) @ rng.standard_normal((dimensions, width))).astype(np.float32)
    import skdim

    theirs_N = skdim.id.TwoNN().fit_pw(x_ND.astype(np.float64), n_neighbors=64).dimension_pw_
    ours_N = np.asarray(dimension.local_two_nn(x_ND, 64, convention="skdim034"))
    np.testing.assert_allclose(ours_N, theirs_N, rtol=1e-3)


def test_geometry_of_smollm2s_unembedding_matches_the_libraries(smollm2):
    """Trained weights against float64 LAPACK, WeightWatcher and IsoScore."""
    s_D = spectrum.singular_values(smollm2)
    truth_D = np.linalg.svd(smollm2.astype(np.float64), compute_uv=False)
    p_D = truth_D / truth_D.sum()
    assert float(spectrum.effective_rank(s_D)) == pytest.approx(np.exp(-(p_D * np.log(p_D)).sum()), rel=1e-3)
    assert float(spectrum.condition_number(s_D)) == pytest.approx(truth_D[0] / truth_D[-1], rel=1e-2)
    square = truth_D**2
    assert float(spectrum.participation_ratio(s_D)) == pytest.approx(square.sum() ** 2 / (square**2).sum(), rel=1e-3)
    assert float(spectrum.singular_entropy(s_D)) == pytest.approx(
        np.log(len(p_D)) + (p_D * np.log(p_D)).sum(), rel=1e-3
    )
    theirs = peers.weightwatcher(smollm2)
    assert float(spectrum.stable_rank(s_D)) == pytest.approx(theirs["stable_rank"], rel=1e-3)
    assert float(spectrum.power_law_alpha(s_D)) == pytest.approx(theirs["power_law_alpha"], rel=1e-3)
    assert float(isotropy.isoscore(smollm2)) == pytest.approx(peers.isoscore(smollm2.astype(np.float64)), rel=1e-3)

    x = smollm2.astype(np.float64)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = ((u.sum(0) ** 2).sum() - len(u)) / (len(u) * (len(u) - 1.0))
    assert float(isotropy.mean_cosine(smollm2)) == pytest.approx(cosine, rel=1e-3)
    y = x @ np.linalg.eigh(x.T @ x)[1]
    log_z = np.concatenate([np.logaddexp.reduce(y, axis=0), np.logaddexp.reduce(-y, axis=0)])
    assert float(isotropy.partition_isotropy(smollm2)) == pytest.approx(np.exp(log_z.min() - log_z.max()), rel=1e-3)
