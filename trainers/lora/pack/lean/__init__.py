"""Parts of a base model that keep less for the way back than they would by themselves.

A model of transformers leaves the way back to autograd, which keeps what each operation needs: of a
gated layer four tensors where two say it all, and it walks over memory ten times for a norm. What is
here computes the same bits going forward, keeps no more than it must, and goes back by a formula. What
adapters need of it on the way back is made again (``anew``).
Which parts of a model that is possible for is found out in ``layers``, by trying.
"""
