"""Models: a bundle's graph or tables, ready to step. Knows nothing about sampling or files of texts."""
