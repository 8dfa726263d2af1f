"""Networks, methods and settings of the paper's tables (arXiv 2605.08022)."""
