"""Refits during training: their schedule, data, judge, weights and protection."""
