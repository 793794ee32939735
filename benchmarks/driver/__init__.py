"""What the driver itself costs: the study, the way through Tune, the turn from trial to trial, nodes.

No model is trained: trials are ``fake``, and a study is made large by ``many_trials``.
"""
