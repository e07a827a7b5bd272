"""How a cohort's program is carried out: its plan, its layout over devices, its compiled steps."""
