"""Stages of an initialisation, each a function from frozen inputs to a frozen result."""
