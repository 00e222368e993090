"""Texts as people have them: files, folders and globs; plain, JSON Lines, Parquet; packed or not.

Documents come one after the other, in bounded memory. Knows nothing about tokens.
"""
