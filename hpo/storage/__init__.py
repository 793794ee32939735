"""A study's rows: the database opened and asked, what is written in one transaction, what is read.

``database`` and its ``database_faults``; ``attributes`` names what is stored; ``leases``, ``rows`` and
``study_rows`` write; ``stored_trials`` and ``summary`` read, and ``row_shapes`` checks what was read.
Only ``hpo.study`` and ``hpo.studies`` write by it, and nothing here knows Ray.
"""
