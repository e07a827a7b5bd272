"""The local learning coefficient of one small network against devinterp's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eval.llc import local_learning_coefficient

pytestmark = pytest.mark.oracle
N, CHAINS, STEPS, EPSILON, GAMMA = 200, 24, 1200, 2e-4, 5.0


def test_a_small_network_has_the_coefficient_that_devinterp_estimates():
    torch = pytest.importorskip("torch")
    from devinterp.optim import SGLD
    from devinterp.slt.sampler import estimate_learning_coeff_with_summary

    rng = np.random.default_rng(0)
    x_ND = rng.normal(size=(N, 3)).astype(np.float32)
    y_N1 = (np.tanh(x_ND @ rng.normal(size=(3, 2))) @ rng.normal(size=(2, 1))).astype(np.float32)

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    inputs, targets = torch.tensor(x_ND), torch.tensor(y_N1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(3000):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(inputs), targets).backward()
        optimizer.step()

    n_beta = N / np.log(N)
    summary = estimate_learning_coeff_with_summary(
        net,
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=N),
        evaluate=lambda model, batch: torch.nn.functional.mse_loss(model(batch[0]), batch[1]),
        sampling_method=SGLD,
        optimizer_kwargs={"lr": EPSILON, "nbeta": n_beta, "localization": GAMMA},
        num_chains=CHAINS,
        num_draws=STEPS // 2,
        num_burnin_steps=STEPS // 2,
        init_loss=float(torch.nn.functional.mse_loss(net(inputs), targets)),
        seed=0,
        verbose=False,
    )

    params = {name: jnp.asarray(p.detach().numpy()) for name, p in net.named_parameters()}

    def loss(w, key):
        hidden_NH = jnp.tanh(x_ND @ w["0.weight"].T + w["0.bias"][None])
        return jnp.mean(jnp.square(hidden_NH @ w["2.weight"].T + w["2.bias"][None] - y_N1))

    found, error, flags = local_learning_coefficient(loss, params, jax.random.key(0), N, CHAINS, STEPS, EPSILON, GAMMA)
    their_error = summary["llc/std"] / np.sqrt(CHAINS)
    assert 0 < summary["llc/mean"] < 10.5  # half the number of parameters
    assert float(found) == pytest.approx(summary["llc/mean"], abs=4 * np.hypot(float(error), their_error))
    assert float(error) < 0.1 * float(found)
    assert int(flags.diverged) == 0
