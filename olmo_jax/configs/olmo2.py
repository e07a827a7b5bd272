"""One OLMo-2 decoder on the built-in corpus: `--config=olmo2:14m`.

    olmo-jax plan --config=olmo2:190m      (prints both parameter counts)

Sizes 14m to 760m are OLMo-core's ladder, 1b is the released OLMo-2-0425-1B [code]. Their weight decay excludes the
embedding; this file also excludes the unembedding [ours]. Context, batch and budget are smaller than published.
"""

from ml_collections import ConfigDict

from olmo_jax.config import OptimizerConfig
from olmo_jax.config.presets import OLMO2
from olmo_jax.configs.single import single_run


def get_config(size: str = "14m") -> ConfigDict:
    return single_run("olmo2", size, OLMO2, OptimizerConfig(decay_embeddings=False))
