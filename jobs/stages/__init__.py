"""The night, one file a stage. Stages are strangers: they meet on disk, and only `nightly`, `backfill`, `cli` and `commands` wire them."""
