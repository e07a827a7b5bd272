"""Reference values of third-party libraries on our test arrays: scikit-dimension, IsoScore, WeightWatcher.

    python -m tests.oracles.peers        (in the environment of `make oracles`: writes peers.json anew)

peers.json lets the plain tests compare with them where they aren't installed; test_peers.py compares live, and says
if the file no longer holds what they say.
"""

import json
import logging
import pathlib

import numpy as np

STORED = pathlib.Path(__file__).parent / "peers.json"

# WeightWatcher drops eigenvalues below 1e-5 regardless of scale, and fits fewer than 20 with another method.
WITHOUT_ALPHA = ("low rank", "nearly singular")


def clouds():
    """Points in 5 to 40 dimensions by name, float32 in float64; none repeats."""
    rng = np.random.default_rng(11)
    angle = rng.uniform(0, 2 * np.pi, (500, 3))
    made = {
        "gaussian": rng.standard_normal((400, 5)),
        "plane in 40": rng.standard_normal((400, 2)) @ rng.standard_normal((2, 40)) + 3.0,
        "torus in 30": np.concatenate([np.cos(angle), np.sin(angle)], axis=1) @ rng.standard_normal((6, 30)),
    }
    return {name: x.astype(np.float32).astype(np.float64) for name, x in made.items()}


def scikit_dimension(x):
    """TwoNN of the whole cloud and around each point, in its convention, and maximum likelihood."""
    import skdim

    mle = skdim.id.MLE().fit(x, n_neighbors=20)
    return {
        "two_nn": float(skdim.id.TwoNN().fit(x).dimension_),
        "two_nn_all": float(skdim.id.TwoNN(discard_fraction=0.0).fit(x).dimension_),
        "local_two_nn_16": skdim.id.TwoNN().fit_pw(x, n_neighbors=16).dimension_pw_.tolist(),
        "levina_bickel": float(mle.dimension_),
        "local_levina_bickel": mle.dimension_pw_.tolist(),
    }


def isoscore(x):
    import torch
    from IsoScore.IsoScore import IsoScore

    return float(IsoScore(torch.tensor(x)))


def weightwatcher(x):
    """Power-law exponent and stable rank of a weight matrix."""
    import torch
    import weightwatcher as ww

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    layer = torch.nn.Linear(x.shape[1], x.shape[0], bias=False)
    layer.weight.data = torch.tensor(x, dtype=torch.float32)
    row = ww.WeightWatcher(model=torch.nn.Sequential(layer)).analyze(min_evals=5).iloc[0]
    return {"power_law_alpha": float(row["alpha"]), "stable_rank": float(row["stable_rank"])}


def all_numbers(matrices):
    """Return all reference values, by library and array."""
    return {
        "scikit-dimension": {name: scikit_dimension(x) for name, x in clouds().items()},
        "IsoScore": {name: isoscore(x) for name, x in matrices.items()},
        "WeightWatcher": {name: weightwatcher(x) for name, x in matrices.items() if name not in WITHOUT_ALPHA},
    }


if __name__ == "__main__":
    from tests.geometry.conftest import MATRICES

    STORED.write_text(json.dumps(all_numbers(MATRICES)) + "\n")
    print(f"wrote {STORED}")
