"""A cohort: runs that share every static setting, stacked along a member axis and trained as one program."""

import dataclasses
from typing import Any

import numpy as np

from olmo_jax.config import ModelConfig, TrainConfig
from olmo_jax.config.field import Role, reset
from olmo_jax.config.identity import digest, first_fields, identity_fields
from olmo_jax.data.sources import arithmetic

# Roles of settings in which the members of a cohort may differ.
_OF_A_MEMBER = (Role.TRACED, Role.SEED, Role.DATA, Role.PLACE)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the members of a cohort have in common: compiled into their program, or done to all of them at once.

    Attributes:
      config: a member's settings with those at their defaults that are its own: its numbers, its seeds, and what its
        data and its folder are called.
      data_name, data_fingerprint: of the prepared data.
      arithmetic: they learn equations, whose answers alone bear loss; which of them is each member's own matter.
    """

    config: TrainConfig
    data_name: str
    data_fingerprint: str
    arithmetic: bool

    @property
    def model(self) -> ModelConfig:
        return self.config.model

    @property
    def batch_size(self) -> int:
        return self.config.data.batch_size

    @property
    def sequence_length(self) -> int:
        return self.config.data.sequence_length

    @property
    def tokens_per_step(self) -> int:
        return self.config.tokens_per_step

    @property
    def window_stride(self) -> int:
        """Tokens from one window's first to the next one's: text windows share a token, equations end in eos."""
        return arithmetic.STRIDE if self.arithmetic else self.sequence_length

    def with_config(self, **sections: Any) -> "Shape":
        """Return the shape with other sections, or fields, of its configuration."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **sections))

    @property
    def compiled(self) -> "Shape":
        """Return what a step's program depends on, so that cohorts which differ in nothing else share one."""
        config = reset(self.config, Role.OBSERVATION, Role.EXECUTION)
        fsdp = dataclasses.replace(config.mesh, fsdp=self.config.mesh.fsdp)
        data = dataclasses.replace(config.data, train_domains=())
        return Shape(dataclasses.replace(config, mesh=fsdp, data=data), "", "", self.arithmetic)

    @property
    def cohort_key(self) -> "Shape":
        """Return what tells cohorts apart: all but how and on what a step is carried out, which may change."""
        return dataclasses.replace(self, config=reset(self.config, Role.EXECUTION))


@dataclasses.dataclass(frozen=True)
class Run:
    """One model trained once."""

    id: str
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The runs of one program, in the order of their places on the member axis.

    part: where they are only some of the runs of their shape, which of its stacks these are in: see planning/stacks.py.
    recorded_id: the id under which a working directory has it; "" for one that isn't recorded yet.
    """

    shape: Shape
    runs: tuple[Run, ...]
    part: int = 0
    recorded_id: str = dataclasses.field(default="", compare=False)

    @property
    def id(self) -> str:
        """By the shape alone: runs that join later change nothing of it, and parts share it."""
        s = self.shape.model
        readable = f"d{s.d_model}-l{s.n_layers}-b{self.shape.batch_size}"
        return self.recorded_id or f"{readable}-{digest(_identity(self.shape.cohort_key))[:8]}"

    @property
    def folder(self) -> str:
        """Name of the folder, below cohorts/, of this stack's checkpoints."""
        return f"{self.id}.{self.part}" if self.part else self.id

    @property
    def segment_ends(self) -> list[int]:
        """Steps at which members end and the stack shrinks; between two of them lies one compiled program."""
        return sorted({run.config.total_steps for run in self.runs})

    def active(self, step: int) -> list[int]:
        """Places of the runs that take step number `step`, counted from 1; at 0 all are there."""
        return [i for i, run in enumerate(self.runs) if run.config.total_steps >= step]


def shape_of(config: TrainConfig, data_fingerprint: str) -> Shape:
    """Return the cohort key of a run: its settings of every role but those that are a member's own."""
    return Shape(reset(config, *_OF_A_MEMBER), config.data.name, data_fingerprint, config.data.is_arithmetic)


def _identity(shape: Shape) -> dict[str, Any]:
    """Return what a cohort's id is made of.

    Ids name folders that are on people's disks: the settings that there were when ids were fixed keep their places, and
    those that are added later stand beside them.
    """
    values = identity_fields(shape.config, without=_OF_A_MEMBER)
    data, optimizer = values.pop("data"), values.pop("optimizer")
    later = {section: values[section] for section in values.keys() - first_fields(shape.config)}
    for fields, config in ((data, shape.config.data), (optimizer, shape.config.optimizer)):
        later |= {name: fields[name] for name in fields.keys() - first_fields(config)}
    return later | {
        **{name: values[name] for name in ("model", "probe", "checkpoint", "mesh", "mapping", "compute")},
        **{name: data[name] for name in ("batch_size", "sequence_length", "train_domains")},
        **{name: optimizer[name] for name in ("decay_embeddings", "decay_norms", "z_loss")},
        "data_name": shape.data_name,
        "data_fingerprint": shape.data_fingerprint,
        "arithmetic": shape.arithmetic,
    }


def checkpoint_steps(cohort: Cohort) -> set[int]:
    """Steps at which the cohort is written, by configuration: a stop adds one, which goes once the cohort is done."""
    ends, config = cohort.segment_ends, cohort.shape.config.checkpoint
    steps = set(ends)
    if config.every:
        steps |= set(range(config.every, ends[-1], config.every))
    if config.log_spaced:
        steps |= {round(s) for end in ends for s in np.geomspace(1, end, config.log_spaced)}
    return steps
