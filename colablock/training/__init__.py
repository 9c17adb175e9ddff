"""The hand-off to training: preflight, launch, progress, resume, and the record of a run.

In: a proven environment and a `TrainConfig`.  Out: a run folder, a trained adapter, a receipt.
"""
