"""The tasks by their names. Data is read when a task is trained, not when this is imported."""

from tasks import fine_tuning, image, listops, lm, mlm, pairs, pathfinder, recall, text, watch

MODULES = lm, mlm, fine_tuning, listops, text, pairs, image, pathfinder, recall, watch
TASKS = {task.name: task for module in MODULES for task in module.TASKS}

__all__ = ["TASKS"]
