"""What HTTP asks of a hop: headers that go along, conditions and ranges, problems, answers streamed through."""
