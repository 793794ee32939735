"""Benchmarks: ratios measured within one run, with their goals, as tables and as JSON files.

Imports ``hpo`` and ``trainers``; neither of them imports this. Not part of the installed package.
"""
