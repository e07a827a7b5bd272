"""Grid in, table and report out."""

from olmo_jax.moved import serve_former_names

serve_former_names()
