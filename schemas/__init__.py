"""What both sides share: columns, ids, list and run records, errors, and the settings that jobs and the service both read.

Knows no Spark, no Flask and no driver: it must import in a second on a machine that has neither.
"""
