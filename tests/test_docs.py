"""Everything that the documents name exists: files, folders, former modules, commands."""

import json
import pathlib
import re
import sys

import pytest
import yaml

from olmo_jax.moved import MOVED
from sweeps.planning.config_names import named_configs
from sweeps.verbs import VERBS

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def spans(text):
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_named_in_documents_exist(document):
    """Their paths begin at the root or at a folder up to three levels below it."""
    missing = []
    for span in spans(document.read_text(encoding="utf-8")):
        if re.fullmatch(r"[\w/]+\.(py|md)", span) and span not in MADE_UP and not span.startswith("sweeps/configs/"):
            places = [ROOT / span, *ROOT.glob(f"*/{span}"), *ROOT.glob(f"*/*/{span}"), *ROOT.glob(f"*/*/*/{span}")]
            missing += [span] if not any(place.exists() for place in places) else []
    assert missing == []


# Files that a reader would write.
MADE_UP = {"mine.py", "sweep.py", "my_metric.py", "study.py", "items.py"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(document):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documented_commands_use_existing_verbs_and_configurations(document):
    commands = re.findall(r"olmo-jax ([a-z]+)([^`\n]*)", document.read_text(encoding="utf-8"))
    for verb, rest in commands:
        if rest.lstrip().startswith(("--", "'", "/", "~")) or rest.strip() == "":
            assert verb in VERBS, f"olmo-jax {verb}"
        for name in re.findall(r"--config=([a-z_0-9]+)(?![\w./])", rest):
            assert name in named_configs(), f"--config={name}"


def test_the_tree_in_architecture_matches_the_folders():
    tree = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    at, missing = [], []
    for line in tree.splitlines():
        names = re.split(r"  +", line.strip())[0].split()
        depth = (len(line) - len(line.lstrip())) // 2
        if not names:
            continue
        if names[0].endswith("/"):
            at = [*at[:depth], names[0]]
            places = ["/".join(at)]
        else:
            places = ["/".join([*at[:depth], f"{name}.py"]) for name in names if name.isidentifier()]
        missing += [place for place in places if not (ROOT / place).exists()]
    assert missing == []


def test_former_modules_listed_in_the_changelog_are_importable():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    former = [span for row in re.findall(r"^\| (`[^|]*) \|", text, flags=re.MULTILINE) for span in spans(row)]
    modules = [name for name in former if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name)]
    assert len(modules) > 5
    assert [name for name in modules if name not in MOVED] == []


def test_pages_made_from_the_code_are_up_to_date():
    from sweeps.table import reference as columns
    from sweeps.verbs import reference as commands

    assert columns.PAGE.read_text(encoding="utf-8") == columns.page(), "run make reference"
    if sys.version_info < (3, 13):
        assert commands.PAGE.read_text(encoding="utf-8") == commands.page(), "run make reference"


def test_make_targets_in_documents_exist_and_run_in_ci():
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    targets = {*re.findall(r"`make ([a-z]+)", text), *re.findall(r"^make ([a-z]+)", text, re.MULTILINE)}
    assert targets >= {"setup", "demo", "test", "docs", "gpu"}
    assert [target for target in targets if f"\n{target}: " not in makefile and f"\n{target}:\n" not in makefile] == []
    # Other targets depend on `setup`, and a test compares what `reference` makes.
    by_hand = {"setup", "bench", "reference"}
    assert [target for target in targets - by_hand if f"make {target}" not in ci] == []


def test_notebooks_have_outputs_and_name_nothing_of_the_machine_that_made_them():
    notebooks = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
    assert len(notebooks) == 3
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert sum(bool(cell["outputs"]) for cell in code) > len(code) / 2
        assert not re.search(r"/root|/home|/tmp/|/work", text)


@pytest.mark.parametrize("name", ["CITATION.cff", ".pre-commit-config.yaml"])
def test_yaml_files_are_valid(name):
    assert yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
