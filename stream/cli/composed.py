"""Commands that share options: each is a function of what the options make, and what makes it is written once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any

Maker = Callable[..., Any]


def composed(command: Callable[..., None], makers: Mapping[str, Maker]) -> Callable[..., None]:
    """A command with options in place of some parameters.

    Args:
        command: a function of what the makers make, and of options of its own.
        makers: parameter of the command -> a function of the options that stand for it, which makes its value.
    """
    taken = [name for name in signature(command).parameters if name in makers]
    options = {name: list(signature(makers[name], eval_str=True).parameters) for name in taken}
    parameters: list[Parameter] = []
    for name, parameter in signature(command, eval_str=True).parameters.items():
        of_maker = signature(makers[name], eval_str=True).parameters.values() if name in makers else (parameter,)
        parameters += [one.replace(kind=Parameter.KEYWORD_ONLY) for one in of_maker]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {name: makers[name](**{option: given.pop(option) for option in options[name]}) for name in taken}
        command(**made, **given)

    vars(run)["__signature__"] = Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    del vars(run)["__wrapped__"]
    return run
