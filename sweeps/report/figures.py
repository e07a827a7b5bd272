"""The figures of a sweep for papers, by name, as SVG and PDF; each is a function of the `AnalysisResults` alone.

    figure = all_figures()["u_shapes"](results)      (a matplotlib Figure; nothing global is touched)
    write_figures(workdir / "report/figures", results)

A figure whose data aren't there says in one line what is missing. The same results give the same files, byte for byte.
"""

import difflib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from etils import epath

from sweeps.report.answer_figures import (
    correlation_matrix,
    early_prediction,
    prediction,
    saturation_quadrants,
    variance_split,
)
from sweeps.report.figure_font import in_small_font, small_font
from sweeps.report.figure_parts import style
from sweeps.report.html import write_whole
from sweeps.report.table_figures import finetuning, loss_against_geometry, quantisation, u_shapes
from sweeps.report.training_figures import geometry_over_training, spectra, training_loss
from sweeps.studies import registered_studies
from sweeps.table.columns import AnalysisError

if TYPE_CHECKING:  # matplotlib is heavy, and the command line imports this package at each command
    from matplotlib.figure import Figure

    from sweeps.analysis.results import AnalysisResults

# Of any sweep.
FIGURES: "dict[str, Callable[[AnalysisResults], Figure]]" = {
    "training_loss": training_loss,
    "geometry_over_training": geometry_over_training,
    "spectra": spectra,
    "loss_against_geometry": loss_against_geometry,
    "u_shapes": u_shapes,
    "correlation_matrix": correlation_matrix,
    "quantisation": quantisation,
    "finetuning": finetuning,
    "saturation_quadrants": saturation_quadrants,
    "variance_split": variance_split,
    "prediction": prediction,
    "early_prediction": early_prediction,
}


def all_figures() -> "dict[str, Callable[[AnalysisResults], Figure]]":
    """Return the figures by name, those of any sweep before those of the registered studies."""
    figures = dict(FIGURES)
    for study in registered_studies():
        figures |= study.figures
    return figures


def write_figures(
    folder: epath.PathLike, results: "AnalysisResults", only: str | Sequence[str] | None = None
) -> list[epath.Path]:
    """Write NAME.svg and NAME.pdf of each figure, each atomically.

    Args:
      folder: made if it isn't there. only: the name of a figure, or several; None for all.

    Returns:
      The paths, in the order of `all_figures` or of `only`.

    Raises AnalysisError for a name that isn't one, before anything is drawn.
    """
    figures = all_figures()
    names = list(figures) if only is None else [only] if isinstance(only, str) else list(only)
    check_names(names)
    folder = epath.Path(folder)
    paths = []
    with small_font():
        for name in names:
            drawn = _rendered(figures[name](results))
            paths += [write_whole(folder / f"{name}.{ending}", content) for ending, content in drawn.items()]
    return paths


def check_names(names: Sequence[str]) -> None:
    """Raise AnalysisError, with the nearest name and the list, for an unknown figure."""
    known = all_figures()
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise AnalysisError(f"no figure '{name}'; the nearest is '{near}', and all are: {', '.join(known)}")


def _rendered(figure: "Figure") -> dict[str, bytes]:
    """Return the files' contents by extension.

    The canvases' methods, not savefig: that draws twice for each file, once for the layout, which the first draw finds
    by itself and the second keeps.
    """
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    svg, pdf, dpi = io.BytesIO(), io.BytesIO(), figure.dpi
    with style():  # how text and ids are written is settled here, not where the figure is drawn
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
        figure.set_layout_engine("none")
        figure.dpi = dpi  # the canvases set their own
        in_small_font(figure)
        FigureCanvasPdf(figure).print_pdf(pdf, metadata={"CreationDate": None})
    return {"svg": svg.getvalue(), "pdf": pdf.getvalue()}
