"""The range of float16, in which GPU delegates compute."""

LARGEST = 65504.0
"""The largest number."""

SMALLEST = 2.0**-14
"""The smallest normal number."""

LARGEST_COUNT = 2048
"""The largest number up to which float16 holds every integer."""
