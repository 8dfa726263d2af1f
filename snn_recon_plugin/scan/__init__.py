"""A pass of a user's net recorded once, and run again with all time steps at once."""
