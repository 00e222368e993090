"""A run: its folder, how it begins, resumes and ends."""
