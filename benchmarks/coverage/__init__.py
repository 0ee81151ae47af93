"""Surveys which residual blocks of public libraries convert: ``python -m benchmarks.coverage --write``.

The survey judges the matcher, so it uses nothing of it: :mod:`.blocks` says for each class what its ``forward`` does,
:mod:`.exact` whether a fused chain computes the same.
"""
