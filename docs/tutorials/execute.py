"""Execute the notebooks of this folder and keep what they print: `make tutorials`.

    python docs/tutorials/execute.py [--check] [NAME ...]

Each runs in an empty folder. --check runs them at their small size and keeps nothing, as CI does. What a notebook
prints depends on the size, so then only errors count.
"""

import argparse
import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
FULL, SMALL = 'SIZE = "full"', 'SIZE = "smoke"'
# Marks a command that is meant to fail.
REFUSED = "# refused"
_CELL_SECONDS = 1800


def execute(path: Path, small: bool) -> nbformat.NotebookNode:
    """Return the executed notebook. Raises CellExecutionError if a cell fails, ValueError if a command does."""
    notebook = nbformat.read(path, as_version=4)
    if small:
        cells = [cell for cell in notebook.cells if FULL in cell.source]
        if not cells:
            raise ValueError(f"{path}: no cell contains {FULL}, which --check replaces by the small size; add it")
        for cell in cells:
            cell.source = cell.source.replace(FULL, SMALL)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=_CELL_SECONDS, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        printed = "".join(output.get("text", "") for output in cell.get("outputs", ()))
        failed = re.search(r"^olmo-jax: .*", printed, re.MULTILINE)
        if failed and REFUSED not in cell.source:
            raise ValueError(f"{path}: a command failed: {failed[0]}; correct it, or mark its cell with {REFUSED!r}")
    return _without_this_machine(notebook, folder)


def _without_this_machine(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """Return the notebook without traces of this machine: no metadata or folders, and pictures in fewer colours."""
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if "text" in output:
                output.text = re.sub(rf"{re.escape(folder)}/?", "", output.text)
            if "image/png" in output.get("data", ()):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    """Return a base64 PNG with at most 64 colours, a fraction of its size."""
    written = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=picture.convert("RGBA").getchannel("A"))
        flat.quantize(64).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks without .ipynb (default: all)")
    parser.add_argument("--check", action="store_true", help="run at the small size, and keep nothing")
    arguments = parser.parse_args()
    # Cells with ! find the commands of this environment, which needn't be activated.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = [FOLDER / f"{name}.ipynb" for name in arguments.names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        notebook = execute(path, arguments.check)
        if not arguments.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells executed", flush=True)


if __name__ == "__main__":
    main()
