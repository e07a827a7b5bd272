"""Run a sweep on other machines: Slurm, SkyPilot, a mirror of its working directory."""
