"""Which model and which prompt a request means: no interface but one has a field for the prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping

from gemb.models.prompts import TASKS, Prompt, for_task
from gemb.serving.refusals import Refused

_BETWEEN = re.compile(r"[\W_]+")


class ServedPrompts:
    """The names under which a model is served, and its prompts."""

    def __init__(self, name: str, default: str, prompts: Mapping[str, str]) -> None:
        """Take the name of the model.

        Args:
            name: mini, for mini, mini:query and mini:document.
            default: task of requests that name none.
            prompts: of the model.
        """
        self.name, self.default = name, default
        # Names of the model's own: those of no task, which an answer's header can hold.
        own = (name for name in prompts if name.isascii() and name.isprintable())
        self._own = [name for name in own if name not in TASKS]
        self._prompts = {task: for_task(task, prompts) for task in TASKS} | {
            name: Prompt(prompts[name] + "{text}") for name in self._own
        }
        self._tasks = {
            _folded(other): task for task, names in TASKS.items() for other in (task, *names)
        }

    @property
    def names(self) -> list[str]:
        """The names of models that are listed."""
        return [self.name, f"{self.name}:query", f"{self.name}:document"]

    def prompt(self, task: str) -> Prompt:
        """Return the prompt of a task, or of a name that the model has for one."""
        return self._prompts[task]

    def task_of(
        self, model: str | None, prompt_name: str | None = None, input_type: str | None = None
    ) -> str:
        """Return the task of a request: its own field, else what the model's name says.

        Args:
            model: mini or mini:query; None: the interface has no such field.
            prompt_name: the model's own name of a prompt, which is returned; a task, or a prompt's
                usual name: query, passage, STS, ...
            input_type: the same.

        Raises:
            Refused: 404 another model, 400 no such prompt.
        """
        named = self.default
        if model is not None:
            base, _, suffix = model.rpartition(":")
            if model == self.name or (base == self.name and suffix == "latest"):
                named = self.default
            elif base == self.name and suffix in TASKS:
                named = suffix
            else:
                raise Refused(
                    404,
                    f"no model {model[:80]!r}; here are {', '.join(self.names)}",
                    code="model_not_found",
                    param="model",
                )
        for param, value in (("prompt_name", prompt_name), ("input_type", input_type)):
            if value:
                task = value if value in self._own else self._tasks.get(_folded(value))
                if task is None:
                    names = ", ".join([*TASKS, *self._own])
                    raise Refused(
                        400,
                        f"{param} {value[:80]!r}: the prompts are {names}",
                        code="invalid_value",
                        param=param,
                    )
                return task
        return named


def _folded(name: str) -> str:
    return _BETWEEN.sub("-", name).lower()
