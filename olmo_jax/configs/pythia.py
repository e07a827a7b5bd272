"""One Pythia, or its sequential twin, on the built-in corpus: `--config=pythia:14m-sequential`.

    olmo-jax train --config=pythia:14m --workdir=runs/pythia

The sizes are 14m, 31m, 70m and 160m. With -sequential the MLP reads the output of attention, which is the only
difference (paper A's pair for late saturation has size 14m). Learning rate, warm-up and the choice of decayed
parameters are Pythia's [code]. Context, batch and budget are smaller than published.
"""

from ml_collections import ConfigDict

from olmo_jax.config import OptimizerConfig
from olmo_jax.config.presets import PYTHIA
from olmo_jax.configs.single import single_run


def get_config(size: str = "14m") -> ConfigDict:
    rate = 6e-4 if size.startswith("160m") else 1e-3
    return single_run(
        "pythia",
        size,
        PYTHIA,
        OptimizerConfig(learning_rate=rate, warmup_fraction=0.01, warmup_from=0.0, decay_norms=False),
    )
