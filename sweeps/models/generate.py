"""What runs make of a prompt: `olmo-jax generate`."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from olmo_jax import hf, weights
from olmo_jax.checkpoint import CheckpointError, load_run, run_steps
from olmo_jax.config import ConfigError, ModelConfig, require
from olmo_jax.data import tokenizer as tokenizers
from olmo_jax.generate import check_sampling, generate_members
from olmo_jax.hf.settings import TOKENIZER, eos_of
from olmo_jax.storage.run_files import matching_runs, run_config
from sweeps.running.stages import data_root

# Runs of one architecture go through the device together, this many at a time.
_TOGETHER = 16


class Sampling(NamedTuple):
    """How to go on: with `tokens` new ones, the likeliest each time at temperature 0, else drawn with `seed`.

    `top_p` draws among the likeliest tokens that together have that share; `samples` is how often to draw.
    """

    tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0


class Continuation(NamedTuple):
    """Texts that follow the prompt; run and step are those of a working directory, else the folder and None."""

    run: str
    step: int | None
    texts: list[str]


def continuations(
    runs: str, prompt: str, sampling: Sampling, workdir: epath.Path | None = None, step: int | None = None
) -> list[Continuation]:
    """Continues a prompt, after a beginning-of-text, under one model or many.

    Args:
      runs: an id or a pattern of ids of `workdir`; without a workdir, a Hugging Face folder with its tokenizer.
      step: of the checkpoints; the last by default.

    Raises:
      CheckpointError, WeightsError: no such run, step or folder.
      ConfigError: a prompt that doesn't fit into the context, or sampling numbers that are none.
      DataError: no tokenizer.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"--prompt={prompt!r}: isn't UTF-8 at character {error.start}; write it in UTF-8") from error
    require(sampling.samples > 0, "--samples", sampling.samples, "needs a positive number")
    require(0 <= sampling.seed < 2**32, "--seed", sampling.seed, "needs a number in [0, 2^32)")
    if sampling.samples > 1 and sampling.temperature == 0:
        raise ConfigError(f"--samples={sampling.samples}: all would be the likeliest text; add --temperature=1")
    if workdir is None:
        if step is not None:
            raise ConfigError(f"--step={step}: a folder has one checkpoint; steps are of a --workdir")
        folder = weights.at(runs)
        hf.check_checkpoint(folder)
        if not (folder / TOKENIZER).exists():
            raise ConfigError(f"{folder}: has no {TOKENIZER}, and no prompt can be read without; put the model's there")
        tokenizer = tokenizers.load(Path(folder) / TOKENIZER, eos_of(folder, folder / TOKENIZER))
        config, params = hf.import_checkpoint(folder)
        return _continue([(runs, None, params)], config, tokenizer, prompt, sampling)
    groups: dict[tuple[ModelConfig, Path, str], list[tuple[str, int | None]]] = collections.defaultdict(list)
    matching = matching_runs(workdir, runs)
    for run in matching:
        train, steps = run_config(workdir, run), run_steps(workdir, run)
        if len(matching) > 1 and not (steps if step is None else step in steps):
            continue  # one that is asked for by name is refused below
        file = data_root(workdir, train) / train.data.name / TOKENIZER
        chosen = max(steps, default=None) if step is None else step
        groups[train.model, file, train.data.eos_token].append((run, chosen))
    if not groups:
        at = "" if step is None else f" at step {step}"
        raise CheckpointError(f"{workdir}: no run '{runs}' has a checkpoint{at}; train first, or choose another step")
    found = []
    for (config, file, eos), members in groups.items():
        tokenizer = tokenizers.load(file, eos)
        for start in range(0, len(members), _TOGETHER):
            read = [(run, at, load_run(workdir, run, at)[1]) for run, at in members[start : start + _TOGETHER]]
            found += _continue(read, config, tokenizer, prompt, sampling)
    return sorted(found, key=lambda one: one.run)


def _continue(
    members: Sequence[tuple[str, int | None, Any]],
    config: ModelConfig,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    sampling: Sampling,
) -> list[Continuation]:
    """Continuations under models (run, step, parameters) of one configuration, stacked."""
    tokens_L = np.concatenate([[tokenizer.eos_id], tokenizer.encode([prompt])[0]]).astype(np.int32)
    check_sampling(config, len(tokens_L), sampling.tokens, sampling.temperature, sampling.top_p)
    params_M = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params for _, _, params in members))
    new_MBL = generate_members(
        config,
        params_M,
        jnp.tile(jnp.asarray(tokens_L)[None], (sampling.samples, 1)),
        sampling.tokens,
        jax.random.key(sampling.seed),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        greedy=sampling.temperature == 0,
    )

    def text(new_L: np.ndarray) -> str:
        ends = np.flatnonzero(new_L == tokenizer.eos_id)
        return tokenizer.decode(new_L[: ends[0]] if len(ends) else new_L)

    return [
        Continuation(run, step, [text(new_L) for new_L in new_BL])
        for (run, step, _), new_BL in zip(members, np.asarray(new_MBL), strict=True)
    ]
