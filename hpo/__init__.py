"""Finds the best hyperparameters for LoRA fine-tuning of language models.

Studies, trials, the bridge to Ray and the command line live here. What trains lives in
``trainers`` and is found by its name; the language of search spaces lives in ``search_spaces``.
"""

__version__ = "0.1.0"
