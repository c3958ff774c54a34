"""Class-wise numbers and how they are compared: pure functions of labels and predictions, no
file, no network.
"""
