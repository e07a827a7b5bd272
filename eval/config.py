"""The evaluations of a sweep, as configuration; each section is declared beside what it configures."""

import dataclasses
from typing import Any

from eval.eval_data import TextConfig
from eval.evaluators.curvature import CurvatureConfig
from eval.evaluators.dynamics import DynamicsConfig
from eval.evaluators.llc import LlcConfig
from eval.evaluators.local_dimension import DimensionConfig
from eval.evaluators.movement import MovementConfig
from eval.evaluators.perturbation import PerturbConfig
from eval.evaluators.projections import ProjectionsConfig
from eval.evaluators.quantization import GroupsConfig as GroupsConfig
from eval.evaluators.quantization import QuantizeConfig
from eval.evaluators.tasks import TasksConfig
from eval.finetuning import FinetuneConfig
from olmo_jax.config.field import Role, setting


@dataclasses.dataclass(frozen=True)
class EvalConfig(TextConfig):
    """The evaluations of a sweep."""

    quantize: QuantizeConfig = QuantizeConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    perturb: PerturbConfig = PerturbConfig()
    tasks: TasksConfig = TasksConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    dimension: DimensionConfig = DimensionConfig()
    curvature: CurvatureConfig = CurvatureConfig()
    llc: LlcConfig = LlcConfig()
    projections: ProjectionsConfig = ProjectionsConfig()
    movement: MovementConfig = MovementConfig()
    own: dict[str, Any] = setting(
        {}, Role.OBSERVATION, "Evaluations of your own: the section of each, by its kind; see docs/evaluation.md."
    )

    @property
    def set_apart(self) -> tuple[str, ...]:
        return self.finetune.domains
