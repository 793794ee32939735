"""The base model, and the weights that trials train on it."""
