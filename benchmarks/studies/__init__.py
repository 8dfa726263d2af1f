"""The studies, one file each: what is measured, and what the pages of docs/ show of it."""
