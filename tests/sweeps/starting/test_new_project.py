"""A new project: what is written, what is refused, and that its sweep trains and measures its metric."""

import pandas as pd
import pytest

from sweeps import cli

SMALL = [
    "--config.train.tokens=8192",
    "--config.train.data.bpe_vocab_size=512",
    "--config.train.model.vocab_size=512",
    "--config.train.model.d_model=16",
    "--config.train.model.d_ff=32",
    "--config.train.model.n_layers=1",
    "--config.train.probe.documents=16",
    "--config.train.probe.document_tokens=16",
    "--config.evaluation.tokens_per_domain=512",
    "--config.evaluation.quantize.bits=(4,)",
    "--config.evaluation.quantize.calibration_tokens=512",
]


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new", "My study!"]) == 0
    monkeypatch.chdir(tmp_path / "My study!")
    return capsys.readouterr().out


def test_a_project_says_what_it_holds_and_plans_at_once(project, capsys, registry):
    for file, about in (("sweep.py", "A sweep of eight"), ("my_metric.py", "A metric"), ("README.md", "My-study")):
        assert any(file in line and about in line for line in project.splitlines())
    assert cli.main(["plan", "--config=sweep.py", "--flops=1e12"]) == 0
    out = capsys.readouterr().out
    assert "8 runs in 2 cohort(s)" in out
    assert "My-study-" in out


def test_a_folder_with_files_is_refused_and_left_as_it_was(tmp_path, capsys):
    (tmp_path / "sweep.py").write_text("mine")
    for i in range(7):
        (tmp_path / f"{i}.txt").touch()
    assert cli.main(["new", str(tmp_path)]) == 2
    assert (
        "contains 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more; name a new or empty folder" in capsys.readouterr().err
    )
    assert (tmp_path / "sweep.py").read_text() == "mine"
    assert not (tmp_path / "README.md").exists()
    assert cli.main(["new", str(tmp_path / "sweep.py")]) == 2
    assert "is a file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_projects_sweep_measures_its_metric_on_text_of_ones_own(project, tmp_path, registry):
    """On the built-in text the README's commands do."""
    (tmp_path / "texts").mkdir()
    for i in range(40):
        text = " ".join(f"word{(i * j) % 97} is followed by {j}" for j in range(400))
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    work = tmp_path / "work"
    assert cli.main(["run", f"--config=sweep.py:{tmp_path}/texts/*.txt", f"--workdir={work}", *SMALL]) == 0
    assert (pd.read_parquet(work / "results.parquet")["unembedding/longest_row"] > 1).all()
    assert "longest_row" in (work / "report" / "index.html").read_text()
