"""Writers of metrics besides metrics.jsonl: TensorBoard event files, Weights & Biases."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol

from etils import epath

from olmo_jax.config import ConfigError, TrainConfig


class Writer(Protocol):
    """A writer of one run's rows, each with its `step`, in order."""

    def write(self, row: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def writers(config: TrainConfig, directory: epath.Path, step: int) -> list[Writer]:
    """Return the writers that a run's configuration names; rows after `step`, from before a kill, are superseded."""
    results: list[Writer] = [TensorBoard(directory, step)] if config.tensorboard else []
    return [*results, WandB(config, directory)] if config.wandb else results


def check_writers(config: TrainConfig) -> None:
    """Raise ConfigError for a writer whose package isn't installed."""
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"config.wandb = {config.wandb!r}: wandb is not installed; pip install 'olmo-jax[wandb]'"
            ) from error


class TensorBoard:
    """A writer of event files in tensorboard/ in the run's directory."""

    def __init__(self, directory: epath.Path, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases with our run's id, so that it is resumed together with ours."""

    def __init__(self, config: TrainConfig, directory: epath.Path):
        import wandb

        self._run = wandb.init(
            project=config.wandb,
            id=directory.name,
            name=directory.name,
            group=config.name,
            dir=str(directory),
            config=dataclasses.asdict(config),
            resume="allow",
            reinit="create_new",  # the members of a cohort are concurrent runs
        )

    def write(self, row: Mapping[str, float]) -> None:
        # Steps that were logged before a kill stay as they are.
        self._run.log({k: v for k, v in row.items() if math.isfinite(v)}, step=int(row["step"]), commit=True)

    def close(self) -> None:
        self._run.finish()
