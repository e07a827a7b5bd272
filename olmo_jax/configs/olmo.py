"""One OLMo-1 decoder on the built-in corpus: `--config=olmo:4m`.

    olmo-jax train --config=olmo:4m --config.optimizer.weight_decay=0.5 --workdir=runs/4m

Sizes 4m, 8m, 13m, 19m, 34m and 75m, named after their non-embedding parameters, stand in for paper A's unpublished ones
[ours, methods.md section 1], as do the optimiser's settings (OptimizerConfig's defaults). Their vocabulary has 4096
tokens, because the built-in corpus has only a few million. Sizes 20m, 60m, 150m, 300m and 1b are OLMo's public ones
with their own vocabulary, learning rate and weight decay [code]. Context, batch and budget are smaller than published
for all sizes: 512, 32 and 2 million. For OLMo-1's own tokenizer and context:

    --config.data.tokenizer=olmo --config.model.vocab_size=50280 --config.data.sequence_length=1024
"""

from ml_collections import ConfigDict

from olmo_jax.config import OptimizerConfig
from olmo_jax.config.presets import OLMO, STAND_INS
from olmo_jax.configs.single import single_run

_LEARNING_RATES = {"20m": 1e-3, "60m": 1e-3, "150m": 6e-4, "300m": 6e-4, "1b": 4e-4}


def get_config(size: str = "4m") -> ConfigDict:
    public = size in _LEARNING_RATES
    # OLMo's configs/tiny exclude embeddings from weight decay; that of 1B doesn't.
    optimizer = OptimizerConfig(
        learning_rate=_LEARNING_RATES.get(size, 3e-4), decay_embeddings=not public or size == "1b"
    )
    config = single_run("olmo", size, OLMO, optimizer)
    if size in STAND_INS:
        config.model.vocab_size = 4096
    config.model.d_ff = 4 * config.model.get_oneway_ref("d_model")  # follows an overridden width
    return config
