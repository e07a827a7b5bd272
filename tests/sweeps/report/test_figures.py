"""The figures of papers: what they show for synthetic results, and the format of their files."""

import sys
import time
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sweeps.report.figure_parts import amount, plain
from sweeps.report.figures import all_figures, write_figures
from sweeps.table.columns import PRIMARY_PAIR, AnalysisError
from tests.sweeps.report import made

NAMES = [
    "training_loss", "geometry_over_training", "spectra", "loss_against_geometry", "u_shapes", "correlation_matrix",
    "quantisation", "finetuning", "saturation_quadrants", "variance_split", "prediction", "early_prediction",
    "claim_curves", "claim_shift", "claim_leads", "claim_sensitivity",
]  # fmt: skip


@pytest.fixture(scope="module")
def answers():
    return made.answers()


def lines(axes, label):
    """The points of the lines with this label."""
    return [(line.get_xdata(), line.get_ydata()) for line in axes.get_lines() if line.get_label() == label]


def bars(axes):
    """The points of each series with error bars, and the ends of its bars, by label."""
    return {
        of.get_label(): (of.lines[0].get_xydata(), np.array(of.lines[2][0].get_segments())) for of in axes.containers
    }


def words(figure):
    figure.draw_without_rendering()
    return " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text())


def test_all_figures_are_listed_in_order():
    assert list(all_figures()) == NAMES


def test_each_run_has_a_loss_curve_and_diverged_ones_are_dotted(answers):
    table = answers.table.copy()
    table.loc[table["run_id"] == "run3", "diverged_at"] = 50
    (axes,) = all_figures()["training_loss"](made.answers(table, answers.curves)).axes
    drawn = axes.get_lines()
    assert len(drawn) == 24
    assert [i for i, line in enumerate(drawn) if line.get_linestyle() == ":"] == [3]
    assert drawn[3].get_ydata()[-1] == pytest.approx(8 - 3 * 199 / 200 + 0.03)
    assert drawn[3].get_xdata()[-1] == 199 * 1024
    # Runs of the first setting's value share its colour.
    batch = answers.table.drop_duplicates("run_id")["config.data.batch_size"].tolist()
    assert answers.settings[0] == "config.data.batch_size"
    assert len({(b, str(line.get_color())) for b, line in zip(batch, drawn, strict=True)}) == 3


def test_long_curves_are_thinned(answers):
    curves = made.curves_of(answers.table, steps=2000)
    (axes,) = all_figures()["training_loss"](made.answers(curves=curves)).axes
    assert max(len(line.get_xdata()) for line in axes.get_lines()) == 300


def test_geometry_is_drawn_at_measured_steps(answers):
    figure = all_figures()["geometry_over_training"](answers)
    first, second, third = (axes for axes in figure.axes if axes.get_lines())
    assert [len(axes.get_lines()) for axes in (first, second, third)] == [24, 24, 24]
    x, y = first.get_lines()[1].get_data()
    assert list(x / 1024) == list(range(0, 200, 20))
    np.testing.assert_allclose(y, 51 - np.arange(0, 200, 20) / 200)


def test_spectra_show_few_runs_of_several_configurations(answers):
    figure = all_figures()["spectra"](answers)
    assert len(figure.axes) == 4
    assert len({axes.get_title() for axes in figure.axes}) == 4
    for axes in figure.axes:
        assert len(axes.get_lines()) == 8
        np.testing.assert_allclose(axes.get_lines()[0].get_xydata(), [[k, 10 / k] for k in (1, 2, 4, 8, 16)])
        assert axes.get_lines()[-1].get_label() == "180"


def test_the_declared_pair_is_plotted_per_run_for_each_setting(answers):
    figure = all_figures()["loss_against_geometry"](answers)
    rows = answers.final.rows
    wanted = rows[["unembedding/effective_rank_percent", "lm_loss/in_domain"]].to_numpy()
    assert len(figure.axes) == len(answers.settings) == 3
    for axes in figure.axes:
        (points,) = axes.collections
        np.testing.assert_array_equal(points.get_offsets(), wanted)


def test_u_shapes_are_means_over_configurations_with_the_range_of_their_seeds():
    rows = []
    for size, batch, decay, losses in [
        (10, 8, 0.1, (1.0, 2.0)),
        (10, 8, 1.0, (5.0,)),
        (10, 32, 0.1, (3.0,)),
        (20, 8, 0.1, (7.0, 7.5)),
    ]:
        for loss in losses:
            row = {"run_id": f"r{len(rows)}", "configuration": f"{size}-{batch}-{decay}", "final": True}
            row |= {"parameters_non_embedding": size, "config.model.d_model": size, "config.data.batch_size": batch}
            rows.append(row | {"diverged_at": None, "config.optimizer.weight_decay": decay, "lm_loss/in_domain": loss})
    figure = all_figures()["u_shapes"](made.answers(pd.DataFrame(rows), {}, saturation=None))
    # The width varies with the size alone: a panel of it would show nothing.
    assert [axes.get_xlabel() for axes in figure.axes] == ["batch size", "weight decay"]
    of_batch = bars(figure.axes[0])
    means, ends = of_batch["10"]
    np.testing.assert_allclose(means, [[8, (1.5 + 5) / 2], [32, 3]])
    np.testing.assert_allclose(ends[:, :, 1], [[(1 + 5) / 2, (2 + 5) / 2], [3, 3]])
    np.testing.assert_allclose(of_batch["20"][1][:, :, 1], [[7, 7.5]])


def test_the_matrix_shows_raw_and_partial_correlations(answers):
    figure = all_figures()["correlation_matrix"](answers)
    raw, partial = (axes.images[0].get_array() for axes in figure.axes[:2])
    wanted = np.array([[-0.9, -0.6], [-0.8, -0.5], [-0.7, -0.4]])
    np.testing.assert_allclose(raw, wanted)
    np.testing.assert_allclose(partial, wanted + 0.01)
    assert "\N{MINUS SIGN}0.90" in words(figure) and "GPTQ 3, in domain" in words(figure)


def test_an_undetermined_correlation_is_blank(answers):
    some = answers.associations.copy()
    some.loc[some.index[0], "estimate"] = np.nan
    figure = all_figures()["correlation_matrix"](made.answers(associations=some))
    assert np.isnan(np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)[0, 0])
    assert "nan" not in words(figure)


def test_quantisation_is_plotted_by_bits_with_the_range_over_runs():
    table = made.sweep(4, checkpoints=1)
    table["round_to_nearest_3/in_domain"] = table["lm_loss/in_domain"] + [0.1, 0.2, 0.3, 0.4]
    left, right = all_figures()["quantisation"](made.answers(table)).axes
    means, ends = bars(left)["rounding"]
    np.testing.assert_allclose(means, [[3, 0.25], [8, 0]], atol=1e-12)
    np.testing.assert_allclose(ends[:, :, 1], [[0.1, 0.4], [0, 0]], atol=1e-12)
    ((x, y),) = lines(right, "rounding, 3 bits")
    np.testing.assert_array_equal(x, table["unembedding/effective_rank_percent"])
    np.testing.assert_allclose(y, [0.1, 0.2, 0.3, 0.4])


def test_forgetting_is_drawn_against_the_target_and_at_the_highest_rate_against_rank(answers):
    left, right = all_figures()["finetuning"](answers).axes
    assert len(left.get_lines()) == 2
    assert lines(right, "code, rate 0.0001") == []
    ((x, y),) = lines(left, "code, rate 0.0001")
    np.testing.assert_allclose(x, answers.final.rows["lm_loss/in_domain"] - 0.5)
    assert set(y) == {0.1}
    assert len(lines(right, "code, rate 0.001")) == 1


def test_the_quadrant_figure_shows_counts(answers):
    figure = all_figures()["saturation_quadrants"](answers)
    (axes,) = figure.axes
    runs = answers.saturation.quadrants.set_index(["rank", "degraded"])["runs"]
    title = f"low rank: {runs['low', True]} degraded, {runs['low', False]} not"
    assert axes.get_title("left") == title and title in words(figure)
    by_label = {points.get_label(): len(points.get_offsets()) for points in axes.collections}
    assert by_label == {"degraded": 8, "not degraded": 16}


def test_undetermined_runs_are_counted_separately(answers):
    runs = answers.saturation.runs.assign(degraded=pd.array([None] * 2 + [True] * 22, "boolean"))
    changed = SimpleNamespace(**(vars(answers.saturation) | {"runs": runs}))
    (axes,) = all_figures()["saturation_quadrants"](made.answers(saturation=changed)).axes
    by_label = {points.get_label(): len(points.get_offsets()) for points in axes.collections}
    assert by_label == {"degraded": 22, "can't be told": 2}


def test_variance_shares_are_stacked_to_their_sum(answers):
    (axes,) = all_figures()["variance_split"](answers).axes
    assert [of.get_label() for of in axes.containers] == ["batch size", "weight decay", "seed", "rest"]
    ends = [[bar.get_x() + bar.get_width() for bar in of] for of in axes.containers]
    np.testing.assert_allclose(ends, [[x, x] for x in (0.5, 0.8, 0.95, 1.0)])


def test_a_selection_of_many_columns_includes_the_declared_pair():
    names = [f"layer_{i}/two_nn" for i in range(40)] + list(PRIMARY_PAIR)
    rows = [[name, "rest", 1.0, 1.0, 1.0, 24, ""] for name in names]
    many = pd.DataFrame(rows, columns=made.COLUMNS["variance"])
    figure = all_figures()["variance_split"](made.answers(variance=many))
    title = words(figure)
    assert (
        "16 of 42 columns" in title and "loss, in domain" in title and "Unembedding W: effective rank, % of D" in title
    )


def test_prediction_shows_points_with_intervals_and_sample_sizes(answers):
    left, right = all_figures()["prediction"](answers).axes
    title = bars(left)
    assert list(title) == ["settings", "settings and geometry"]
    np.testing.assert_allclose(title["settings"][0][:, 0], [0.5] * 6)
    np.testing.assert_allclose(title["settings"][1][:, :, 0], [[0.3, 0.8]] * 6)
    assert [t.get_text() for t in right.get_yticklabels()] == [
        "batch size", "parameters", "Unembedding W: effective rank, % of D",
    ]  # fmt: skip


def test_early_prediction_is_plotted_by_fraction_of_training(answers):
    (axes,) = all_figures()["early_prediction"](answers).axes
    title = bars(axes)
    assert list(title) == ["settings", "settings and loss", "settings and geometry", "all"]
    points, ends = title["all"]
    np.testing.assert_allclose(points[:, 1], [0.2, 0.35, 0.6])
    np.testing.assert_allclose(points[:, 0], [10, 25, 50], atol=3)
    np.testing.assert_allclose(ends[:, :, 1], [[0.1, 0.3], [0.25, 0.45], [0.5, 0.7]])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", [None, pd.DataFrame({"run_id": ["a"], "final": [False], "diverged_at": [None]})])
def test_figures_without_data_state_in_a_line_what_is_missing(name, table):
    text = words(all_figures()[name](made.empty_answers(table)))
    assert text.startswith("No figure: ") and text.endswith(".")
    assert len(text) < 120 and "nan" not in text


def test_an_empty_figure_shows_the_reason_of_the_analysis(answers):
    given = made.early().assign(r2=np.nan, note="3 configurations are too few for 5 folds")
    text = words(all_figures()["early_prediction"](made.answers(early=given)))
    assert text == "No figure: 3 configurations are too few for 5 folds."


def hard_tables():
    whole = made.sweep(12, checkpoints=2)
    numbers = [c for c in whole if whole[c].dtype == float and "/" in c]
    yield "one run", made.sweep(1, checkpoints=1, seeds=1)
    yield "one size", whole.assign(parameters_non_embedding=5)
    yield "one configuration", whole[whole["configuration"] == "c0"]
    yield "constant", whole.assign(**dict.fromkeys(numbers, 1.0))
    yield "zeros and negatives", whole.assign(**dict.fromkeys(numbers, 0.0), **{"config.data.batch_size": -whole.index})
    yield "all missing", whole.assign(**dict.fromkeys(numbers, np.nan))
    yield "infinite", whole.assign(**{c: whole[c].mask(whole.index % 3 == 0, np.inf) for c in numbers})
    yield (
        "lists and missing settings",
        whole.assign(
            **{
                "config.data.files": [["$a", "<b>"], [], None] * 8,
                "config.model.norm": ["$x_1$", None] * 12,
                "config.model.tied": [True, False] * 12,
                "config.optimizer.beta2": [0.9, np.nan, 0.99] * 8,
            }
        ),
    )
    yield (
        "many levels",
        whole.assign(**{"config.data.batch_size": whole.index, "config.model.norm": list("abcdefghijkl") * 2}),
    )


@pytest.mark.slow
@pytest.mark.parametrize(("case", "table"), list(hard_tables()), ids=[case for case, _ in hard_tables()])
@pytest.mark.filterwarnings("error")
def test_figures_of_degenerate_tables_are_drawn(case, table):
    drawn = made.answers(table, made.curves_of(table, steps=40, places=(1, 2)))
    of_answers_alone = {"correlation_matrix", "variance_split", "prediction", "early_prediction"}
    for name in (name for name in NAMES if name not in of_answers_alone):
        figure = all_figures()[name](drawn)
        figure.draw_without_rendering()
        assert figure.findobj(matplotlib.text.Text)


@pytest.mark.parametrize("name", ["$", "$a_$b$", "\\$x$", "a\x00b\nc", "<&>\"'", "_^{", "x" * 500])
def test_any_name_is_shown_literally(name, tmp_path):
    figure = Figure()
    figure.text(0.5, 0.5, plain(name))
    figure.savefig(tmp_path / "a.svg")
    ElementTree.parse(tmp_path / "a.svg")
    assert len(plain(name)) < 60


def test_figure_files_are_reproducible_vector_graphics_with_text(answers, tmp_path):
    chosen = ["loss_against_geometry", "variance_split"]
    paths = write_figures(tmp_path / "one" / "figures", answers, chosen)
    assert [path.name for path in paths] == [f"{name}.{ending}" for name in chosen for ending in ("svg", "pdf")]
    assert sorted(p.name for p in (tmp_path / "one" / "figures").iterdir()) == sorted(path.name for path in paths)
    svg = paths[0].read_text()
    title = [
        "".join(element.itertext()).strip()
        for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "In-domain loss, nats a token" in title and "weight decay" in title
    assert "<dc:date>" not in svg
    assert paths[1].read_bytes().startswith(b"%PDF") and b"CreationDate" not in paths[1].read_bytes()
    again = write_figures(tmp_path / "again", answers, chosen)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_a_single_figure_can_be_written(answers, tmp_path):
    assert [p.name for p in write_figures(tmp_path, answers, "u_shapes")] == ["u_shapes.svg", "u_shapes.pdf"]


def test_an_unknown_figure_is_refused_with_the_nearest_name(answers, tmp_path):
    with pytest.raises(AnalysisError) as error:
        write_figures(tmp_path / "figures", answers, ["spectra", "u_shape"])
    assert str(error.value).startswith("no figure 'u_shape'; the nearest is 'u_shapes', and all are: training_loss, ")
    assert not (tmp_path / "figures").exists()


def test_existing_figures_stay_if_drawing_fails(answers, tmp_path, monkeypatch):
    paths = write_figures(tmp_path, answers, "variance_split")
    before = [path.read_bytes() for path in paths]

    def full(self, file, **more):
        raise OSError("disk full")

    monkeypatch.setattr(FigureCanvasSVG, "print_svg", lambda self, file, **more: file.write(b"<svg/>"))
    monkeypatch.setattr(FigureCanvasPdf, "print_pdf", full)
    with pytest.raises(OSError, match="disk full"):
        write_figures(tmp_path, answers, "variance_split")
    assert [path.read_bytes() for path in paths] == before
    assert len(list(tmp_path.iterdir())) == 2


def test_drawing_neither_changes_nor_uses_global_matplotlib_settings(answers, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # makes its import fail
    (plain_svg, _) = write_figures(tmp_path / "plain", answers, "variance_split")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = matplotlib.rcParams.copy()
        (svg, _) = write_figures(tmp_path / "loud", answers, "variance_split")
        assert matplotlib.rcParams.copy() == before
    assert svg.read_bytes() == plain_svg.read_bytes()


@pytest.mark.parametrize(
    ("x", "text"),
    [(8e9, "8B"), (64e6, "64M"), (32768, "32.77k"), (512, "512"), (0.0001, "0.0001"), (-2e6, "-2M"), (0, "0")],
)
def test_tick_labels_are_abbreviated_numbers(x, text):
    assert amount(x) == text


@pytest.mark.slow
def test_a_whole_sweep_is_drawn_in_20_seconds(tmp_path):
    table = made.sweep(108, checkpoints=100)
    whole = made.answers(table, made.curves_of(table, steps=2000))
    begun = time.monotonic()
    write_figures(tmp_path, whole)
    assert time.monotonic() - begun < 20
