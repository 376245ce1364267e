"""The coordinator's only public door: nginx, written from one table of who may call what."""
