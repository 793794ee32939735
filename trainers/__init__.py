"""What trains: the trainer protocol, and the trainers that come with it.

Knows no search, no database and no cluster: every trainer here is usable alone. A trainer is
found by its name (the entry points of the group ``hpo.trainers``) or by a dotted path.
"""
