"""Readers of file formats: lines, JSON, Parquet; plain or packed."""
