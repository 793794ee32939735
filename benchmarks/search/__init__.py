"""A whole search, by this and by what people would use instead: ``python -m benchmarks.search``."""
