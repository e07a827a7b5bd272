"""Former names of moved modules: they can be imported for one more release, with a warning."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Sequence

MOVED = {
    "eval.calibrate": "eval.evaluators.calibrate",
    "eval.dynamics": "eval.evaluators.dynamics",
    "eval.finetune": "eval.evaluators.finetuning",
    "eval.material": "eval.eval_data",
    "eval.local_dimension": "eval.evaluators.local_dimension",
    "eval.perturb": "eval.evaluators.perturbation",
    "eval.quantizations": "eval.evaluators.quantization",
    "olmo_jax.attention": "olmo_jax.execution.attention",
    "olmo_jax.checked": "olmo_jax.config.validation",
    "olmo_jax.checksums": "olmo_jax.storage.checksums",
    "olmo_jax.clock": "olmo_jax.logs.timing",
    "olmo_jax.compiled": "olmo_jax.execution.compilation_cache",
    "olmo_jax.compute": "olmo_jax.execution.plan",
    "olmo_jax.data.arithmetic": "olmo_jax.data.sources.arithmetic",
    "olmo_jax.data.built_in": "olmo_jax.data.sources.registry",
    "olmo_jax.data.debian_prose": "olmo_jax.data.sources.debian_prose",
    "olmo_jax.data.downloads": "olmo_jax.data.sources.downloads",
    "olmo_jax.data.encoded": "olmo_jax.data.tokenizing.encoded",
    "olmo_jax.data.example": "olmo_jax.data.sources.example",
    "olmo_jax.data.feed": "olmo_jax.data.batches",
    "olmo_jax.data.key_order": "olmo_jax.data.tokenizing.key_order",
    "olmo_jax.data.lines": "olmo_jax.data.sources.readers.lines",
    "olmo_jax.data.markup": "olmo_jax.data.sources.markup",
    "olmo_jax.data.named_files": "olmo_jax.data.sources.readers.named_files",
    "olmo_jax.data.olmo_tasks": "olmo_jax.data.sources.olmo_tasks",
    "olmo_jax.data.parquet": "olmo_jax.data.sources.readers.parquet",
    "olmo_jax.data.pieces": "olmo_jax.data.sources.readers.pieces",
    "olmo_jax.data.portions": "olmo_jax.data.tokenizing.portions",
    "olmo_jax.data.prose": "olmo_jax.data.sources.prose",
    "olmo_jax.data.python_packages": "olmo_jax.data.sources.python_packages",
    "olmo_jax.data.rows": "olmo_jax.data.sources.readers.rows",
    "olmo_jax.data.sample": "olmo_jax.data.tokenizing.sample",
    "olmo_jax.data.stream": "olmo_jax.data.tokenizing.stream",
    "olmo_jax.data.task_items": "olmo_jax.data.sources.task_items",
    "olmo_jax.data.text_corpus": "olmo_jax.data.sources.text_corpus",
    "olmo_jax.data.text_files": "olmo_jax.data.sources.text_files",
    "olmo_jax.data.word_cache": "olmo_jax.data.tokenizing.word_cache",
    "olmo_jax.data.words": "olmo_jax.data.tokenizing.words",
    "olmo_jax.data.workers": "olmo_jax.data.tokenizing.workers",
    "olmo_jax.data_config": "olmo_jax.config.data",
    "olmo_jax.decide": "olmo_jax.execution.memory",
    "olmo_jax.flops": "olmo_jax.execution.flops",
    "olmo_jax.hosts": "olmo_jax.execution.processes",
    "olmo_jax.identity": "olmo_jax.config.identity",
    "olmo_jax.lfs": "olmo_jax.storage.lfs",
    "olmo_jax.lock": "olmo_jax.storage.lock",
    "olmo_jax.matmul": "olmo_jax.execution.matmul",
    "olmo_jax.members": "olmo_jax.execution.members",
    "olmo_jax.metrics": "olmo_jax.logs.metrics",
    "olmo_jax.model_config": "olmo_jax.config.model",
    "olmo_jax.names": "olmo_jax.storage.names",
    "olmo_jax.paths": "olmo_jax.storage.paths",
    "olmo_jax.presets": "olmo_jax.config.presets",
    "olmo_jax.probe": "olmo_jax.probes.geometry",
    "olmo_jax.probe_config": "olmo_jax.config.probe",
    "olmo_jax.program": "olmo_jax.execution.program",
    "olmo_jax.progress": "olmo_jax.console",
    "olmo_jax.run_files": "olmo_jax.storage.run_files",
    "olmo_jax.run_status": "olmo_jax.storage.run_status",
    "olmo_jax.sharding": "olmo_jax.execution.sharding",
    "olmo_jax.texts": "olmo_jax.probes.texts",
    "olmo_jax.writers": "olmo_jax.logs.writers",
    "sweeps.analysis.answers": "sweeps.analysis.results",
    "sweeps.analysis.claim": "sweeps.studies.paper_b.claim",
    "sweeps.analysis.claims": "sweeps.studies.paper_b.claims",
    "sweeps.analysis.columns": "sweeps.table.columns",
    "sweeps.analysis.events": "sweeps.studies.paper_b.events",
    "sweeps.analysis.noise": "sweeps.analysis.seed_noise",
    "sweeps.analysis.shift": "sweeps.studies.paper_b.shift",
    "sweeps.compare": "sweeps.report.compare",
    "sweeps.config_file": "sweeps.planning.config_file",
    "sweeps.configs.grokking": "sweeps.studies.paper_b.grokking",
    "sweeps.configs.local_dimension": "sweeps.studies.paper_b.local_dimension",
    "sweeps.configs.paper": "sweeps.studies.paper_a.paper",
    "sweeps.continuations": "sweeps.models.generate",
    "sweeps.costs": "sweeps.planning.costs",
    "sweeps.courses": "sweeps.table.curves",
    "sweeps.directions": "sweeps.studies.paper_a.effects",
    "sweeps.export_run": "sweeps.models.export_run",
    "sweeps.grid": "sweeps.planning.grid",
    "sweeps.import_run": "sweeps.models.import_run",
    "sweeps.launch": "sweeps.remote.launch",
    "sweeps.mirror": "sweeps.remote.mirror",
    "sweeps.parts": "sweeps.planning.stacks",
    "sweeps.place": "sweeps.remote.store",
    "sweeps.plan": "sweeps.planning.plan",
    "sweeps.record": "sweeps.planning.record",
    "sweeps.report.claim_figures": "sweeps.studies.paper_b.items",
    "sweeps.report.claims": "sweeps.studies.paper_b.panels",
    "sweeps.report.claims_section": "sweeps.studies.paper_b.items",
    "sweeps.report.findings": "sweeps.report.sentences",
    "sweeps.report.latex": "sweeps.report.export",
    "sweeps.report.papers": "sweeps.report.export",
    "sweeps.report.row_findings": "sweeps.report.row_sentences",
    "sweeps.reporting": "sweeps.report.stage",
    "sweeps.run": "sweeps.running.stages",
    "sweeps.schema": "sweeps.table.catalog",
    "sweeps.sky": "sweeps.remote.sky",
    "sweeps.slurm": "sweeps.remote.slurm",
    "sweeps.stacks": "sweeps.running.stacks",
    "sweeps.stage_times": "sweeps.running.stage_times",
    "sweeps.status": "sweeps.running.status",
    "sweeps.task": "sweeps.remote.task",
    "sweeps.upgrades": "sweeps.planning.upgrades",
    "sweeps.versions": "sweeps.planning.versions",
    "sweeps.weights_table": "sweeps.models.geometry",
}


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder that imports a moved module under its former name; both names then refer to the same module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        new = MOVED[spec.name]
        _warn(spec.name)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        # The import system has just overwritten the module's spec with that of the former name.
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state

    def get_code(self, name: str) -> types.CodeType | None:
        """Return what `python -m NAME` runs."""
        new = MOVED[name]
        _warn(name)
        spec = importlib.util.find_spec(new)
        loader = None if spec is None else spec.loader
        return loader.get_code(new) if isinstance(loader, importlib.abc.InspectLoader) else None


def _warn(former: str) -> None:
    """Warn at the line that imports the former name, which is the caller's caller."""
    message = f"{former} has moved to {MOVED[former]}; the former name will be removed in the next release"
    warnings.warn(message, FutureWarning, 3)


def serve_former_names() -> None:
    """Make former names importable; every package calls this, and further calls have no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
