"""The life of one upload: its parts go through flows to sinks, concurrently, and all or nothing is kept."""
