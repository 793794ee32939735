"""One pass of the base model for the rows of several trials, each with its own adapter.

The rows of all trials lie end to end as one long row (``rows``); attention stays within a row
(``attention``); every adapted layer computes the base model's part once for all tokens, and adds
each trial's part by products over stacked adapters (``stacks``, ``route``, ``adapted_layer``); other
parts of a layer keep no more for the way back than they must (``lean``); the vocabulary is only
projected where there is something to learn (``loss``). Which models and trials
can be served so is decided in ``ability``. Optimizers, schedules and validations are elsewhere.
"""
