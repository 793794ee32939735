"""The bridge to Ray: Tune schedules trials, hosts train them, and the study decides.

Nothing here survives or has to: searcher, scheduler and verdicts are rebuilt from the study at every
start. The driver's part is in ``driver``, ``stays``, ``searcher``, ``scheduler``, ``places`` and
``place``; what runs on the nodes is ``host`` (one a device, owns the base model) and ``on_node``.
``session`` begins and ends the cluster.
"""
