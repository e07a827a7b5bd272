"""Continue a prompt with the models of runs: `olmo-jax generate`."""

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
from olmo_jax.storage.run_files import data_root, matching_runs, run_config

# Models of one architecture are batched on the device, this many at a time.
_MODELS_PER_BATCH = 16


class Sampling(NamedTuple):
    """How to sample: `tokens` new tokens, each the likeliest at temperature 0, otherwise drawn with `seed`.

    Tokens are drawn from the likeliest that together have probability `top_p`; `samples` is the number of texts.
    """

    tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0


class Continuation(NamedTuple):
    """Texts that follow the prompt, and the model: its run and step, or a Hugging Face folder and None."""

    run: str
    step: int | None
    texts: list[str]


def continuations(
    runs: str, prompt: str, sampling: Sampling, workdir: epath.Path | None = None, step: int | None = None
) -> list[Continuation]:
    """Continue a prompt, preceded by a beginning-of-text token, with one model or several.

    Args:
      runs: an id or a pattern of ids in `workdir`; without a workdir, a Hugging Face folder with its tokenizer.
      step: that of the checkpoints; the last by default.

    Raises:
      CheckpointError, WeightsError: an unknown run, step or folder.
      ConfigError: a prompt that doesn't fit into the context, or an invalid sampling parameter.
      DataError: no tokenizer.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"--prompt={prompt!r}: isn't UTF-8 at character {error.start}; give it in UTF-8") from error
    require(sampling.samples > 0, "--samples", sampling.samples, "needs a positive number")
    require(0 <= sampling.seed < 2**32, "--seed", sampling.seed, "needs a number in [0, 2^32)")
    if sampling.samples > 1 and sampling.temperature == 0:
        raise ConfigError(f"--samples={sampling.samples}: all would be the same likeliest text; add --temperature=1")
    if workdir is None:
        if step is not None:
            raise ConfigError(f"--step={step}: a folder has one checkpoint; only a --workdir has steps")
        folder = weights.at(runs)
        hf.check_checkpoint(folder)
        if not (folder / TOKENIZER).exists():
            raise ConfigError(
                f"{folder}: has no {TOKENIZER}, which is needed to tokenise the prompt; put the model's there"
            )
        tokenizer = tokenizers.load(Path(folder) / TOKENIZER, eos_of(folder, folder / TOKENIZER))
        config, params = hf.import_checkpoint(folder)
        return _continue([(runs, None, params)], config, tokenizer, prompt, sampling)
    groups: dict[tuple[ModelConfig, Path, str], list[tuple[str, int | None]]] = collections.defaultdict(list)
    matching = matching_runs(workdir, runs)
    for run in matching:
        train, steps = run_config(workdir, run), run_steps(workdir, run)
        if len(matching) > 1 and not (steps if step is None else step in steps):
            continue  # a run given by its id is refused below
        file = data_root(workdir, train) / train.data.name / TOKENIZER
        chosen = max(steps, default=None) if step is None else step
        groups[train.model, file, train.data.eos_token].append((run, chosen))
    if not groups:
        at_step = "" if step is None else f" at step {step}"
        raise CheckpointError(
            f"{workdir}: no run '{runs}' has a checkpoint{at_step}; train first, or choose another step"
        )
    results = []
    for (config, file, eos), members in groups.items():
        tokenizer = tokenizers.load(file, eos)
        for start in range(0, len(members), _MODELS_PER_BATCH):
            batch = members[start : start + _MODELS_PER_BATCH]
            models = [(run, chosen, load_run(workdir, run, chosen)[1]) for run, chosen in batch]
            results += _continue(models, config, tokenizer, prompt, sampling)
    return sorted(results, key=lambda result: result.run)


def _continue(
    members: Sequence[tuple[str, int | None, Any]],
    config: ModelConfig,
    tokenizer: tokenizers.Tokenizer,
    prompt: str,
    sampling: Sampling,
) -> list[Continuation]:
    """Continue the prompt with models (run, step, parameters) of one configuration, as one batch."""
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
