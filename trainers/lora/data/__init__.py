"""The data of a trainer: from files, folders and hubs to batches of tokens."""
