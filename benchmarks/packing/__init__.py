"""What it is worth that trials share a pass: ``python -m benchmarks.packing``."""
