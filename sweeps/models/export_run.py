"""Write a run of a working directory as a Hugging Face folder: `olmo-jax export`."""

from etils import epath

from olmo_jax import hf
from olmo_jax.checkpoint import CheckpointError, load_run
from olmo_jax.hf.settings import TOKENIZER
from olmo_jax.storage.run_files import data_root, matching_runs, run_config


def export_run(
    workdir: epath.Path,
    run: str,
    folder: epath.PathLike,
    step: int | None = None,
    dtype: str = "float32",
    shard_bytes: float = 5e9,
) -> str:
    """Write a run's last checkpoint, or the one at `step`, with its tokenizer; return the architecture's name.

    `run` is an id, or a pattern that matches only one. Raises CheckpointError for an unknown run or step, or several
    runs, and what `hf.export_checkpoint` raises.
    """
    run_id, *others = matching_runs(workdir, run)
    if others:
        raise CheckpointError(
            f"'{run}' matches {len(others) + 1} runs of {workdir}, such as {run_id} and {others[0]}; name one"
        )
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
