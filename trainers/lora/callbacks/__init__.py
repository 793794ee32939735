"""transformers' callbacks, for one trial each."""
