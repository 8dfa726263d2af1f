"""After training: what is done to a network whose hidden layers stay as they are."""
