"""The items of the report that come with the library; `sweeps.report.item` loads every module here."""
