"""After training: changes to a network whose hidden layers stay as they are."""
