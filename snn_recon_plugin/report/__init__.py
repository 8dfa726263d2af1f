"""Report of an initialisation."""
