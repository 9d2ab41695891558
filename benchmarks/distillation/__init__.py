"""Distillation beside its alternatives on real speech, in folds of speakers."""
