"""N-best lists in the formats that people have, one file a format. Knows nothing about models."""
