"""The night, one file a stage. Stages are strangers: they meet on disk, and only `nightly` and `backfill` wire them whole."""
