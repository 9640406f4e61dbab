"""`make stack`: what `docker compose --profile full up` starts, as processes, under real traffic."""
