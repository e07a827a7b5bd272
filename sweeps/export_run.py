"""A run of a working directory as a Hugging Face folder: `olmo-jax export`."""

from etils import epath

from olmo_jax import hf
from olmo_jax.checkpoint import load_run, run_config
from olmo_jax.hf.settings import TOKENIZER
from sweeps.run import data_root


def export_run(
    workdir: epath.Path,
    run_id: str,
    folder: epath.PathLike,
    step: int | None = None,
    dtype: str = "float32",
    shard_bytes: float = 5e9,
) -> str:
    """Writes the run's last checkpoint, or the one at `step`, with its tokenizer; returns the architecture's name.

    Raises CheckpointError for no such run or step, and what `hf.export_checkpoint` raises.
    """
    train = run_config(workdir, run_id)
    config, params = load_run(workdir, run_id, step)
    tokenizer = data_root(workdir, train) / train.data.name / TOKENIZER
    return hf.export_checkpoint(
        config,
        params,
        folder,
        tokenizer=tokenizer,
        eos_token=train.data.eos_token,
        dtype=dtype,
        shard_bytes=shard_bytes,
    )
