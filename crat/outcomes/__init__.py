"""The answers of a network on each image, clean and under attack: computed once, kept, read
again.
"""
