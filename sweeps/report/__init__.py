"""The report of a sweep: one offline page, and what it is made of."""

from sweeps.report.page import write_report

__all__ = ["write_report"]
