"""Small faults planted in the package, one at a time, to see whether a commit's own tests find them."""
