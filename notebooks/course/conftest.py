"""Exercises are red until they are solved: tests/test_course.py runs them and their solutions,
nbval does not.
"""

collect_ignore_glob = ["*.ipynb"]
