"""Execution of a cohort's program: its plan, its layout over devices, its compiled steps."""
