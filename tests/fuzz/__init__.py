"""A fuzzer of everything that `hpo` reads: files of users, rows of databases, checkpoints.

``python -m tests.fuzz --files N --seed S`` runs it for as long as one likes; ``test_fuzz`` a part of it.
"""
