"""One OLMo-1 decoder on the built-in corpus: `--config=olmo_jax/configs/olmo.py:4m`.

    olmo-jax train --config=olmo_jax/configs/olmo.py:4m --config.optimizer.weight_decay=0.5 --workdir=runs/4m

Sizes 4m, 8m, 13m, 19m, 34m, 75m are the non-embedding parameters of the six sizes that stand in for paper A's
unpublished ones [ours, methods.md section 1]; so are the optimiser's numbers (OptimizerConfig's defaults). Vocabulary,
context, batch and budget are smaller than the paper's, for the built-in corpus has a few million tokens: 4096 tokens,
512, 32 and 2 million. For OLMo-1's own tokenizer and context:

    --config.data.tokenizer=tokenizer.json --config.model.vocab_size=50280 --config.data.sequence_length=1024
"""

from ml_collections import ConfigDict

from olmo_jax.config import ConfigError, ModelConfig, TrainConfig, to_config_dict

# d_model, n_layers, n_heads
SIZES = {
    "4m": (256, 4, 8),
    "8m": (256, 8, 8),
    "13m": (320, 8, 8),
    "19m": (384, 8, 8),
    "34m": (512, 8, 8),
    "75m": (768, 8, 12),
}


def get_config(size: str = "4m") -> ConfigDict:
    if size not in SIZES:
        raise ConfigError(f"olmo.py has no size '{size}'; sizes: {', '.join(SIZES)}")
    d_model, n_layers, n_heads = SIZES[size]
    model = ModelConfig(vocab_size=4096, d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model)
    config = to_config_dict(TrainConfig(name=f"olmo-{size}", tokens=2_000_000, model=model))
    config.model.d_ff = 4 * config.model.get_oneway_ref("d_model")  # follows an overridden width
    config.data.train_domains = ("prose",)
    config.data.sequence_length = 512
    config.data.batch_size = 32
    config.probe.every = 20
    config.checkpoint.log_spaced = 5
    return config
