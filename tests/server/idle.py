"""Stands where the executor does not matter: `python -m tests.server.idle DIR` does nothing for ever."""

import time

if __name__ == "__main__":
    while True:
        time.sleep(1)
