"""What the demos need before a study can run: a small real model and real data.

Nothing here is part of the product; it makes ``make demo`` and ``make smart-home`` work on a
machine without a model hub. Searching lives in ``hpo``, training in ``trainers``.
"""
