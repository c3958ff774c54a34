"""Files that appear whole or not at all; the working store; what was published."""
