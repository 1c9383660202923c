"""The night: Spark jobs from raw events to published lists, and the `nightlist` command."""
