"""Scheduling rules of engines as InferenceX starts them, for its suite: one file each, given to the engine by path."""
