"""The sections of the page, in its order; studies add theirs between these."""

from sweeps.report.item import add_section

add_section("findings", "Findings")
add_section("training", "Over training")
add_section("spectra", "Spectra")
add_section("scatter", "Loss against geometry")
add_section("by-setting", "By setting")
add_section("correlation", "Correlations")
add_section("after", "Quantisation and fine-tuning")
add_section("saturation", "Saturation")
add_section("variance", "Sources of variance")
add_section("prediction", "Prediction")
add_section("results", "Results")
add_section("made", "How it was made")
