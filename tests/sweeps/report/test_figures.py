"""The figures of the report: what they show for synthetic results, and the format of their files."""

import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from sweeps.report import charts, export, render
from sweeps.report.item import Figure, NothingToShow, items, show
from sweeps.report.numbers import format_value
from sweeps.table.columns import PRIMARY_PAIR, AnalysisError
from tests.sweeps.report import made

NAMES = [item.name for item in items(Figure)]
RANK, LOSS = "Unembedding W: effective rank, % of D", "loss, in domain"


def figure(name, results):
    (item,) = (item for item in items(Figure) if item.name == name)
    return item.make(results)


def data(name, results, of=None):
    """Return the first of a figure's data, or those of this name."""
    drawn = figure(name, results).data
    return drawn[of] if of else next(iter(drawn.values()))


def text_of(svg):
    """Return all text of an SVG file, its elements' texts separated by newlines."""
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(element.itertext()).strip() for element in found)


@pytest.fixture(scope="module")
def answers():
    return made.answers()


def test_figures_are_listed_in_the_order_of_the_page():
    assert NAMES[:3] == ["training_loss", "geometry_over_training", "states_over_training"]
    assert NAMES.index("spectra") < NAMES.index("loss_against_geometry") < NAMES.index("correlation_matrix")
    assert len(NAMES) == len(set(NAMES)) >= 17


def test_each_run_has_a_loss_curve_and_diverged_ones_are_dotted(answers):
    table = answers.table.copy()
    table.loc[table["run_id"] == "run3", "diverged_at"] = 50
    of = made.answers(table, answers.curves)
    losses = data("training_loss", of)
    assert losses["run"].nunique() == 24
    last = losses[losses["run"] == "run3"].iloc[-1]
    assert last["loss"] == pytest.approx(8 - 3 * 199 / 200 + 0.03) and last["tokens"] == 199 * 1024
    assert set(losses.loc[losses["diverged"], "run"]) == {"run3"}
    dash = figure("training_loss", of).specification["layer"][0]["encoding"]["strokeDash"]
    assert dash["condition"]["test"] == "datum.diverged"


def test_long_curves_are_thinned(answers):
    losses = data("training_loss", made.answers(curves=made.curves_of(answers.table, steps=2000)))
    assert losses.groupby("run").size().max() == 300


def test_runs_are_coloured_by_the_first_setting_and_can_be_by_the_others(answers):
    runs = data("training_loss", answers, "runs").set_index("run")
    assert list(runs.columns) == ["about", "batch size", "weight decay", "schedule"]
    first = answers.table.drop_duplicates("run_id").set_index("run_id")
    assert list(runs["batch size"]) == list(first["config.data.batch_size"])
    params = {p["name"]: p["value"] for p in figure("training_loss", answers).specification["params"]}
    assert params == {"against": "tokens", "colour_by": "batch size", "hidden": []}


def test_points_to_hover_at_are_on_the_page_only_and_only_if_few(answers, monkeypatch):
    drawn = figure("geometry_over_training", answers)
    layers = drawn.specification["spec"]["layer"]
    assert [layer.get("name") for layer in layers] == [None, "hover"] and layers[1]["mark"]["opacity"] == 0
    svg = render.files(drawn, ["svg"])["svg"]
    monkeypatch.setattr(charts, "MAX_HOVERED", 10)
    many = figure("geometry_over_training", answers)
    assert len(many.specification["spec"]["layer"]) == 1
    assert render.files(many, ["svg"])["svg"] == svg


def test_geometry_is_drawn_at_measured_steps(answers):
    geometry = data("geometry_over_training", answers)
    assert geometry["run"].nunique() == 24
    of = geometry[geometry["run"] == "run1"]
    assert list(of["step"]) == list(range(0, 200, 20)) and list(of["tokens"] / 1024) == list(range(0, 200, 20))
    np.testing.assert_allclose(of["Unembedding W: Effective rank, % of D"], 51 - np.arange(0, 200, 20) / 200)


def test_spectra_show_few_steps_of_a_few_configurations(answers):
    spectra = data("spectra", answers)
    params = {p["name"]: p for p in figure("spectra", answers).specification["params"]}
    few = params["few"]["value"]
    assert len(few) == 4
    assert answers.table[answers.table["run_id"].isin(few)]["configuration"].nunique() == 4
    of = spectra[spectra["run"] == few[0]]
    assert of["step"].nunique() == 8 and of["step"].max() == 180
    first = of[of["step"] == of["step"].min()]
    np.testing.assert_allclose(first[["place", "value"]], [[k, 10 / k] for k in (1, 2, 4, 8, 16)])
    assert set(of.loc[of["last"], "step"]) == {180}


def test_the_declared_pair_is_chosen_first_and_any_other_can_be(answers):
    drawn = figure("loss_against_geometry", answers)
    final, rows = drawn.data["final"], answers.final.rows
    np.testing.assert_array_equal(final[[RANK, LOSS]], rows[list(PRIMARY_PAIR)])
    params = {p["name"]: p for p in drawn.specification["params"]}
    assert (params["metric"]["value"], params["loss"]["value"]) == (RANK, LOSS)
    assert set(params["metric"]["bind"]["options"] + params["loss"]["bind"]["options"]) == set(final.columns) - {"run"}


def test_a_parameter_that_is_shown_as_a_title_becomes_an_expression(answers):
    encoding = figure("loss_against_geometry", answers).specification["encoding"]
    assert encoding["x"]["title"] == {"signal": "metric"} and encoding["color"]["title"] == {"signal": "colour_by"}
    assert RANK in text_of(render.files(figure("loss_against_geometry", answers))["svg"])


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
    shapes = data("u_shapes", made.answers(pd.DataFrame(rows), {}, saturation=None))
    # The width varies with the size alone: a panel of it would show nothing.
    assert list(shapes["setting"].unique()) == ["config.data.batch_size", "config.optimizer.weight_decay"]
    of_batch = shapes[shapes["setting"] == "config.data.batch_size"].set_index(["size", "at"])[["mean", "low", "high"]]
    np.testing.assert_allclose(of_batch.loc[10, 8], [(1.5 + 5) / 2, (1 + 5) / 2, (2 + 5) / 2])
    np.testing.assert_allclose(of_batch.loc[10, 32], [3, 3, 3])
    np.testing.assert_allclose(of_batch.loc[20, 8], [7.25, 7, 7.5])


def test_the_matrix_shows_raw_and_partial_correlations_in_its_cells(answers):
    matrix = data("correlation_matrix", answers).set_index(["form", "loss", "metric"])["estimate"]
    raw = matrix["raw"].unstack("loss").loc[[charts.names_of([m])[m] for m in made.METRICS]]
    wanted = np.array([[-0.9, -0.6], [-0.8, -0.5], [-0.7, -0.4]])
    np.testing.assert_allclose(raw[[LOSS, "GPTQ 3, in domain"]], wanted)
    partial = matrix["given settings as ranks"].unstack("loss").loc[raw.index, raw.columns]
    np.testing.assert_allclose(partial, raw + 0.01)
    svg = text_of(render.files(figure("correlation_matrix", answers))["svg"])
    assert "\N{MINUS SIGN}0.90" in svg and "GPTQ 3, in domain" in svg


def test_an_undetermined_correlation_is_blank(answers):
    some = answers.associations.copy()
    some.loc[some.index[0], "estimate"] = np.nan
    results = made.answers(associations=some)
    assert len(data("correlation_matrix", results)) == len(data("correlation_matrix", answers)) - 1
    assert "nan" not in text_of(render.files(figure("correlation_matrix", results))["svg"]).lower()


def test_quantisation_is_a_rise_of_the_loss_by_bits_and_method():
    table = made.sweep(4, checkpoints=1)
    table["round_to_nearest_3/in_domain"] = table["lm_loss/in_domain"] + [0.1, 0.2, 0.3, 0.4]
    rises = data("quantisation", made.answers(table))
    rounding = rises[rises["method"] == "rounding"]
    assert set(rounding["bits"]) == {3, 8} and set(rounding.loc[rounding["fewest"], "bits"]) == {3}
    np.testing.assert_allclose(rounding.loc[rounding["bits"] == 3, "change"], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(rounding.loc[rounding["bits"] == 8, "change"], 0, atol=1e-12)
    np.testing.assert_array_equal(rounding.loc[rounding["bits"] == 3, "rank"], table[PRIMARY_PAIR[0]])


def test_an_effect_is_chosen_from_all_quantisations_and_finetunings(answers):
    drawn = figure("effects", answers)
    params = {p["name"]: p for p in drawn.specification["params"]}
    effects = params["effect"]["bind"]["options"]
    assert "rounding to 3 bits: rise of in-domain loss" in effects
    assert "fine-tuning on code at rate 0.001: forgetting" in effects
    rise = answers.final.rows["gptq_3/in_domain"] - answers.final.rows["lm_loss/in_domain"]
    np.testing.assert_allclose(drawn.data["effects"]["GPTQ to 3 bits: rise of in-domain loss"], rise)


def test_forgetting_is_drawn_against_the_target_and_at_the_highest_rate_against_rank(answers):
    tunings = data("finetuning", answers)
    lowest = tunings[tunings["rate"] == 0.0001]
    np.testing.assert_allclose(lowest["after"], answers.final.rows["lm_loss/in_domain"] - 0.5)
    assert set(lowest["change"]) == {0.1} and not lowest["highest"].any()
    assert set(tunings.loc[tunings["highest"], "rate"]) == {0.001}


def test_the_quadrant_figure_shows_counts(answers):
    drawn = figure("saturation_quadrants", answers)
    runs = answers.saturation.quadrants.set_index(["rank", "degraded"])["runs"]
    title = f"low rank: {runs['low', True]} degraded, {runs['low', False]} not"
    assert title in text_of(render.files(drawn)["svg"])
    assert drawn.data["saturation"]["loss"].value_counts().to_dict() == {"degraded": 8, "not degraded": 16}
    assert drawn.data["median_rank"]["rank"].item() == answers.saturation.median_rank


def test_undetermined_runs_are_counted_separately(answers):
    runs = answers.saturation.runs.assign(degraded=pd.array([None] * 2 + [True] * 22, "boolean"))
    changed = SimpleNamespace(**(vars(answers.saturation) | {"runs": runs}))
    of = data("saturation_quadrants", made.answers(saturation=changed))
    assert of["loss"].value_counts().to_dict() == {"degraded": 22, "unknown": 2}


def test_variance_shares_are_stacked_in_the_order_of_the_settings(answers):
    shares = data("variance_split", answers)
    of = shares[shares["column"] == RANK].sort_values("place")
    assert list(of["setting"]) == ["batch size", "weight decay", "seed", "rest"]
    np.testing.assert_allclose(of["share"].cumsum(), [0.5, 0.8, 0.95, 1.0])


def test_a_selection_of_many_columns_includes_the_declared_pair():
    names = [f"layer_{i}/two_nn" for i in range(40)] + list(PRIMARY_PAIR)
    rows = [[name, "rest", 1.0, 1.0, 1.0, 24, ""] for name in names]
    many = pd.DataFrame(rows, columns=made.COLUMNS["variance"])
    drawn = figure("variance_split", made.answers(variance=many))
    assert drawn.data["variance"]["column"].nunique() == 16 and {RANK, LOSS} <= set(drawn.data["variance"]["column"])
    assert "16 of 42 columns" in drawn.note


def test_prediction_shows_points_with_intervals(answers):
    of = data("prediction", answers)
    assert set(of["features"]) == {"settings", "settings and geometry"} and len(of) == 12
    np.testing.assert_allclose(of.loc[of["features"] == "settings", ["r2", "low", "high"]], [[0.5, 0.3, 0.8]] * 6)


def test_importance_shows_the_columns_that_matter_most_in_words(answers):
    of = data("importance", answers)
    assert dict(zip(of["feature"], of["importance"], strict=True)) == {RANK: 0.1, "batch size": 0.4, "parameters": 0.2}


def test_early_prediction_is_drawn_by_fraction_of_training(answers):
    of = data("early_prediction", answers)
    assert list(of["features"].unique()) == ["settings", "settings and loss", "settings and geometry", "all"]
    every = of[of["features"] == "all"]
    np.testing.assert_allclose(every[["percent", "r2", "low", "high"]],
                               [[10, 0.2, 0.1, 0.3], [25, 0.35, 0.25, 0.45], [50, 0.6, 0.5, 0.7]])  # fmt: skip


@pytest.mark.parametrize("table", [None, pd.DataFrame({"run_id": ["a"], "final": [False], "diverged_at": [None]})])
def test_figures_without_data_state_in_a_line_what_is_missing(table):
    for item in items(Figure):
        shown = show(item, made.empty_answers(table))
        assert shown.content is None and 5 < len(shown.why) < 100 and "nan" not in shown.why, item.name


def test_an_empty_figure_shows_the_reason_of_the_analysis():
    given = made.early().assign(r2=np.nan, note="3 configurations are too few for 5 folds")
    with pytest.raises(NothingToShow, match="^3 configurations are too few for 5 folds$"):
        figure("early_prediction", made.answers(early=given))


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
def test_figures_of_degenerate_tables_are_drawn(case, table):
    results = made.answers(table, made.curves_of(table, steps=40, places=(1, 2)))
    drawn = 0
    for item in items(Figure):
        shown = show(item, results)
        if shown.content is not None:
            ElementTree.fromstring(render.files(shown.content)["svg"])
            drawn += 1
    assert drawn >= 5


@pytest.mark.parametrize("name", ["$", "$a_$b$", "a\x00b\nc", "<&>\"'", "x" * 500, "datum.x", "[0].y", "=evil"])
def test_any_name_is_shown_literally(name):
    table = made.sweep(12, checkpoints=1).rename(columns={"config.data.batch_size": f"config.data.{name}"})
    table[f"unembedding/{name}"] = 1.0
    drawn = figure("loss_against_geometry", made.answers(table))
    shown = charts.printable(name.rsplit(".", 1)[-1].replace("_", " "))
    svg = text_of(render.files(drawn)["svg"])
    assert shown[:30] in svg and "undefined" not in svg  # a title that is too long is cut
    assert len(max(drawn.data["runs"].columns, key=len)) <= 60


def test_levels_of_a_setting_keep_their_kind():
    values = {"number": [1, 0.5], "words": ["a", "b"], "flag": [True, False], "list": [["x", "y"], []]}
    for name, levels in values.items():
        table = made.sweep(2, checkpoints=1, seeds=1).assign(**{f"config.data.{name}": levels})
        runs = charts.runs_data(made.answers(table))
        expected = levels if name == "number" else [format_value(level) for level in levels]
        assert list(runs[name]) == expected


def test_figure_files_are_reproducible_vector_graphics_with_text(answers, tmp_path):
    chosen = [show(item, answers) for item in items(Figure) if item.name in ("loss_against_geometry", "variance_split")]
    paths = export.write_figures(tmp_path / "one" / "figures", chosen)
    names = [
        f"{name}.{ending}" for name in ("loss_against_geometry", "variance_split") for ending in ("svg", "pdf", "png")
    ]
    assert [path.name for path in paths] == names
    assert sorted(p.name for p in (tmp_path / "one" / "figures").iterdir()) == sorted(names)
    texts = text_of(paths[0].read_bytes())
    assert LOSS in texts and "batch size" in texts
    assert paths[1].read_bytes().startswith(b"%PDF") and paths[2].read_bytes().startswith(b"\x89PNG")
    again = export.write_figures(tmp_path / "again", chosen)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_figures_drawn_by_another_process_are_the_same(answers, tmp_path):
    chosen = [show(item, answers) for item in items(Figure) if item.name in ("prediction", "spectra")]
    here = export.write_figures(tmp_path / "here", chosen)
    with export.write_figures_beside(tmp_path / "there", chosen, ("svg", "pdf")):
        assert not (tmp_path / "there").exists()
    known = {path.name: path.read_bytes() for path in here if path.suffix != ".png"}
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == known


def test_a_chart_that_cannot_be_drawn_leaves_the_others_and_is_named(answers, tmp_path):
    chosen = [show(item, answers) for item in items(Figure) if item.name in ("u_shapes", "prediction")]
    broken = Figure(chosen[1].content.chart.transform_filter("datum. <"), chosen[1].content.data)
    named = pytest.raises(export.DrawingError, match="fix their charts: prediction: ")
    with named, export.write_figures_beside(tmp_path, [chosen[0], chosen[1]._replace(content=broken)], ("svg", "pdf")):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["u_shapes.pdf", "u_shapes.svg"]


def test_a_failure_of_the_process_that_draws_is_an_error(answers, tmp_path):
    chosen = [show(item, answers) for item in items(Figure) if item.name == "u_shapes"]
    failed = pytest.raises(RuntimeError, match="drawing the figures failed with exit code 1")
    with failed, export.write_figures_beside(tmp_path, chosen, ("svg", "gif")):
        pass
    with pytest.raises(OSError, match="disk full"), export.write_figures_beside(tmp_path, chosen, ("svg", "pdf")):
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())


def test_files_of_a_figure_that_has_nothing_to_show_any_more_are_removed(answers, tmp_path):
    (item,) = (item for item in items(Figure) if item.name == "u_shapes")
    assert len(export.write_figures(tmp_path, [show(item, answers)])) == 3
    assert export.write_figures(tmp_path, [show(item, made.empty_answers())]) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_figure_is_refused_with_the_nearest_name():
    with pytest.raises(AnalysisError) as error:
        export.figure_item("u_shape")
    start = "no figure 'u_shape'; the nearest is 'u_shapes', and the figures are: training_loss, "
    assert str(error.value).startswith(start)


def test_existing_figures_stay_if_drawing_fails(answers, tmp_path, monkeypatch):
    (item,) = (item for item in items(Figure) if item.name == "variance_split")
    shown = [show(item, answers)]
    before = [path.read_bytes() for path in export.write_figures(tmp_path, shown)]

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr("vl_convert.svg_to_pdf", full)
    with pytest.raises(OSError, match="disk full"):
        export.write_figures(tmp_path, shown)
    assert [(tmp_path / f"variance_split.{e}").read_bytes() for e in ("svg", "pdf", "png")] == before
    assert len(list(tmp_path.iterdir())) == 3


def test_importing_the_report_does_not_import_what_draws():
    heavy = ("altair", "vl_convert", "jinja2")
    code = f"import sys, sweeps.report, sweeps.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
