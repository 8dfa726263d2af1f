"""A user's training step, read: its loss, and the scores and targets that it gets."""
