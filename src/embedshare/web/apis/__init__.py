"""Routes that programs call."""
