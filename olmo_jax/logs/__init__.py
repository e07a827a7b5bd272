"""Logs of training: metrics, timings, and writers for other programs."""
