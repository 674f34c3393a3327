"""Figures, tables and pages from result records only: nothing here imports torch or sees a model."""
