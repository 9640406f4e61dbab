"""What can be configured: settings, what of them contradicts, how they are loaded, and what memory they allow."""
