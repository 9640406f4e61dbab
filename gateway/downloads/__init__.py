"""What is given back, and what is fetched: stored files and archives, allow-listed remote URLs."""
