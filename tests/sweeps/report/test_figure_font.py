import io

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from sweeps.report.figure_font import in_small_font, small_font

LATIN, GEORGIAN = "Te\N{MINUS SIGN}VA fi \N{GREEK SMALL LETTER RHO}\N{SUPERSCRIPT TWO}", "\N{GEORGIAN LETTER AN}"


def written(text):
    figure = Figure()
    return figure, figure.text(0.1, 0.5, text)


@pytest.mark.parametrize("text", [LATIN, LATIN + GEORGIAN])
def test_text_has_equal_width_in_the_small_font(text):
    figure, drawn = written(text)
    renderer = FigureCanvasAgg(figure).get_renderer()
    before = drawn.get_window_extent(renderer).bounds
    with small_font():
        in_small_font(figure)
        assert drawn.get_fontfamily()[0] != "sans-serif"
        assert drawn.get_window_extent(renderer).bounds == before


def test_a_pdf_contains_characters_missing_from_the_small_font():
    figure, _ = written(LATIN + GEORGIAN)
    file = io.BytesIO()
    with small_font(), matplotlib.rc_context({"pdf.fonttype": 42, "pdf.compression": 0}):
        in_small_font(figure)
        FigureCanvasPdf(figure).print_pdf(file)
    assert f"<{ord(GEORGIAN):04x}>".encode() in file.getvalue()
    assert file.getvalue().count(b"/FontFile2") == 3  # Latin-1 and what lies beyond it of the copy, and the whole font


def test_the_small_font_is_not_registered_permanently():
    before = [(font.name, font.fname) for font in fontManager.ttflist]
    with small_font():
        assert len(fontManager.ttflist) == len(before) + 1
    assert [(font.name, font.fname) for font in fontManager.ttflist] == before
    figure, drawn = written(LATIN)
    in_small_font(figure)
    assert drawn.get_fontfamily() == ["sans-serif"]
