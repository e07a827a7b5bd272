"""What branches need of their parents when a sweep runs: checkpoints that are written, and the same tokenizer."""

from collections.abc import Mapping

from etils import epath

from olmo_jax.branch import missing, parent_workdir
from olmo_jax.cohort import Cohort
from olmo_jax.config import ConfigError
from olmo_jax.console import say
from olmo_jax.data.shards import INDEX_FILE, TokenIndex
from olmo_jax.errors import UserError
from olmo_jax.storage.run_files import data_root, run_config
from sweeps.planning.plan import Plan


def lacking(workdir: epath.Path, stack: Cohort) -> str:
    """Return which checkpoints a stack's branches start from that aren't there, in words; "" if all are."""
    try:
        names = missing(workdir, stack)
    except UserError as error:
        return str(error)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    what = "a checkpoint that isn't" if len(names) == 1 else "checkpoints that aren't"
    return f"it starts from {', '.join(names[:3])}{more}, {what} there" if names else ""


def check_tokenizers(workdir: epath.Path, plan: Plan, indexes: Mapping[str, TokenIndex]) -> None:
    """Raise ConfigError for a branch whose text is tokenised by another tokenizer than its parent's.

    The data of a parent in another working directory may be gone; then this can't be checked, and a line says so.
    """
    planned = {run.id: run.config for run in plan.runs}
    for run in plan.runs:
        branch = run.config.branch
        if not branch.parent:
            continue
        ours = indexes[run.config.data.name].tokenizer_sha256
        if branch.workdir:
            folder = parent_workdir(workdir, run.config)
            parent = run_config(folder, branch.run)
            place = data_root(folder, parent) / parent.data.name
            if not (place / INDEX_FILE).exists():
                say(f"{run.id}: {place} is gone, so its tokenizer can't be compared with that of {branch.run}")
                continue
            theirs = TokenIndex.load(place).tokenizer_sha256
        else:
            theirs = indexes[planned[branch.run].data.name].tokenizer_sha256
        if ours != theirs:
            raise ConfigError(
                f"config.train.data.name = {run.config.data.name!r}: {run.id} reads tokens of another tokenizer than "
                f"its parent, {branch.run}; branch onto text that is prepared with the parent's tokenizer"
            )
