"""A cohort: runs that share every static setting, stacked along a member axis and trained as one program."""

import dataclasses
from typing import Any

import numpy as np

from olmo_jax.config import BranchConfig, CheckpointConfig, ModelConfig, TrainConfig
from olmo_jax.config.field import Role, reset
from olmo_jax.config.identity import digest, first_fields, identity_fields
from olmo_jax.data.sources import arithmetic

# Roles of settings in which the members of a cohort may differ.
_MEMBER_ROLES = (Role.TRACED, Role.SEED, Role.DATA, Role.PLACE)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The settings that the members of a cohort share: compiled into their program, or applied to all of them.

    Attributes:
      config: the settings of a member, with those that may differ between members (hyper-parameters, seeds, names of
        data and folder) at their defaults.
      data_name, data_fingerprint: name and fingerprint of the prepared data.
      arithmetic: the data are equations and only the answers count in the loss; members may train on different ones.
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
    def start_step(self) -> int:
        """Return the step that training starts after: 0, or that of the parents' checkpoints."""
        return self.config.branch.start_step

    @property
    def is_averaged(self) -> bool:
        """Return whether a moving average of the parameters is kept."""
        return self.config.checkpoint.ema_decay > 0

    @property
    def window_stride(self) -> int:
        """Return the tokens between the starts of consecutive windows: text windows share one, equations end in eos."""
        return arithmetic.STRIDE if self.arithmetic else self.sequence_length

    def with_config(self, **sections: Any) -> "Shape":
        """Return the shape with some sections or fields of its configuration replaced."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **sections))

    @property
    def compiled(self) -> "Shape":
        """Return the settings that a step's program depends on; cohorts that agree in them share one program."""
        config = reset(self.config, Role.OBSERVATION, Role.EXECUTION)
        fsdp = dataclasses.replace(config.mesh, fsdp=self.config.mesh.fsdp)
        data = dataclasses.replace(config.data, train_domains=())
        kept = CheckpointConfig(ema_decay=self.config.checkpoint.ema_decay)
        config = dataclasses.replace(config, mesh=fsdp, data=data, branch=BranchConfig(), checkpoint=kept)
        return Shape(config, "", "", self.arithmetic)

    @property
    def cohort_key(self) -> "Shape":
        """Return the settings that identify a cohort: all but those of execution, which may change."""
        return dataclasses.replace(self, config=reset(self.config, Role.EXECUTION))


@dataclasses.dataclass(frozen=True)
class Run:
    """One model trained once."""

    id: str
    config: TrainConfig


@dataclasses.dataclass(frozen=True)
class Cohort:
    """The runs of one program, in the order of the member axis.

    part: the index of the stack, if the runs of a shape are split into several (see planning/stacks.py).
    recorded_id: the id that a working directory has recorded; "" if it isn't recorded yet.
    """

    shape: Shape
    runs: tuple[Run, ...]
    part: int = 0
    recorded_id: str = dataclasses.field(default="", compare=False)

    @property
    def id(self) -> str:
        """Return the id, which depends only on the shape: all stacks share it and added runs don't change it."""
        s = self.shape.model
        readable = f"d{s.d_model}-l{s.n_layers}-b{self.shape.batch_size}"
        return self.recorded_id or f"{readable}-{digest(_identity(self.shape.cohort_key))[:8]}"

    @property
    def folder(self) -> str:
        """Return the name of the folder, below cohorts/, of this stack's checkpoints."""
        return f"{self.id}.{self.part}" if self.part else self.id

    @property
    def segment_ends(self) -> list[int]:
        """Return the steps at which members end and the stack shrinks; each segment between them is one program."""
        return sorted({run.config.total_steps for run in self.runs})

    def active(self, step: int) -> list[int]:
        """Return the indices of the runs that take step `step`, counted from 1; at 0, those of all runs."""
        return [i for i, run in enumerate(self.runs) if run.config.total_steps >= step]


def shape_of(config: TrainConfig, data_fingerprint: str) -> Shape:
    """Return the shape of the cohort that a run belongs to: its settings without those that may differ within it."""
    return Shape(reset(config, *_MEMBER_ROLES), config.data.name, data_fingerprint, config.data.is_arithmetic)


def _identity(shape: Shape) -> dict[str, Any]:
    """Return the values whose digest is a cohort's id.

    Ids name existing folders on users' disks, so the settings of the first version keep their keys, and settings added
    later are added beside them.
    """
    values = identity_fields(shape.config, without=_MEMBER_ROLES)
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
    """Return the steps of the configured checkpoints; a stop adds one, which is deleted when the cohort is done."""
    ends, config = cohort.segment_ends, cohort.shape.config.checkpoint
    steps = {step for step in config.at if step < ends[-1]}
    if config.every:
        steps |= set(range(config.every, ends[-1], config.every))
    if config.log_spaced:
        steps |= {round(s) for end in ends for s in np.geomspace(1, end, config.log_spaced)}
    return {step for step in steps if step > cohort.shape.start_step} | set(ends)
