"""What is counted and timed, and how it is shown to those who watch."""
