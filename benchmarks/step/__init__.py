"""One trial's training step, against transformers' Trainer with PEFT: ``python -m benchmarks.step``."""
