"""What can be configured: settings, what of them contradicts, and how they are loaded."""
