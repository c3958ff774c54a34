"""The batch: `reproduce` makes the figures, here or on a cluster; `site` builds the pages.

`grading` marks a course.
"""

from crat.extras import needs

needs("crat.batch", "psutil")

__all__ = ["grading", "reproduce", "site"]
