"""Where metrics go beside metrics.jsonl: TensorBoard's event files, Weights & Biases."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Protocol

from etils import epath

from olmo_jax.config import ConfigError, TrainConfig


class Writer(Protocol):
    """Takes one run's rows, each with its `step`, in order."""

    def write(self, row: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


def writers(config: TrainConfig, directory: epath.Path, step: int) -> list[Writer]:
    """The writers that a run asks for; what they hold of steps after `step`, from before a kill, counts no more."""
    found: list[Writer] = [TensorBoard(directory, step)] if config.tensorboard else []
    return [*found, WandB(config, directory)] if config.wandb else found


def check_writers(config: TrainConfig) -> None:
    """Raises ConfigError for a writer whose package isn't there."""
    if config.wandb:
        try:
            import wandb  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"config.wandb = {config.wandb!r}: wandb is not installed; pip install 'olmo-jax[wandb]'"
            ) from error


class TensorBoard:
    """Event files in tensorboard/ of the run's directory."""

    def __init__(self, directory: epath.Path, step: int):
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def write(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases by our run's id, so that a resumed run goes on there too."""

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
            reinit="create_new",  # the members of a cohort are runs side by side
        )

    def write(self, row: Mapping[str, float]) -> None:
        # Steps that it has already, from before a kill, it leaves as they are.
        self._run.log({k: v for k, v in row.items() if math.isfinite(v)}, step=int(row["step"]), commit=True)

    def close(self) -> None:
        self._run.finish()
