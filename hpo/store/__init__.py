"""Where a study's files lie: a local folder, or an address that pyarrow or fsspec can reach.

``hpo.checkpoints`` says what a checkpoint is and when one is whole; here is how its files are put,
got and removed (``local``, ``remote``), what a manifest may say (``manifest``), how an address is read
(``address``), and how much may be stored (``quota``).
"""
