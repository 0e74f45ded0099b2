"""Files of many kinds, as text in reading order."""
