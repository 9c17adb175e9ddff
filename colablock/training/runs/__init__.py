"""One run: its config, folder, checkpoints, launch, progress, crash report and summary.

In: a `TrainConfig` and a run folder.  Out: a launched process and what its files tell.
"""
