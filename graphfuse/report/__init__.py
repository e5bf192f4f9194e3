"""What a fusion did, for people: terminal tables and one HTML page."""
