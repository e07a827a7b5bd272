"""Readers of file formats: lines, JSON and Parquet, plain or compressed."""
