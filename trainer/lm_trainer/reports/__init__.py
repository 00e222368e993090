"""Reports: what a run tells about itself, as records, pictures and a page."""
