"""The engine: admission, the batch of tasks, and the runtimes that work on it."""
