"""Check an evaluation's configuration against a cohort and its data, before anything is trained."""

from etils import epath

from eval import suite
from eval.config import EvalConfig
from eval.eval_data import EvalData
from olmo_jax.cohort import Cohort
from olmo_jax.data.shards import TokenIndex


def check_evaluation(config: EvalConfig, cohort: Cohort, index: TokenIndex) -> None:
    """Raise ConfigError for a setting that the cohort or its data don't allow; see suite.check."""
    suite.check(config, EvalData(epath.Path(), cohort, index, config))
