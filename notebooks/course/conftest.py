"""Exercises are red until they are solved: tests/test_course.py runs them, nbval does not."""

collect_ignore_glob = ["*.ipynb"]
