"""May a request come in, decided on its headers alone; and its body's bytes, counted and timed."""
