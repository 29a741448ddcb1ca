"""Runs a chat template as what it is: a program by a stranger.

A template is written in Jinja and comes with the model. Jinja's immutable sandbox keeps it from Python's
internals and from changing what it is given. It does not keep it from using up time and memory, so here

- only the parts of the language that chat templates need are allowed, with a short list of filters and
  methods; there is no loader, hence nothing to include or import;
- each round of a loop and each call of a macro counts, as does each character that is read or made, and what
  could make a large value is counted before it is done. When the allowance is used up, rendering ends.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from phicourse.errors import TokenizerError

SOURCE_LIMIT = 256 << 10  # characters; the longest templates in use have about 60,000
STEPS = 100_000  # rounds of loops, calls of macros, items of lists
CHARACTERS = 64 << 20
SECONDS = 10.0  # a last resort: the two limits above are reached long before
DEPTH = 64  # of lists in lists
EXPONENT, INTEGER_BITS = 64, 4096


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


NODES = _names(
    "Template Output TemplateData For If Assign AssignBlock Macro Name NSRef Const Tuple List Dict Pair Keyword"
    " Getattr Getitem Slice Filter Test Call Concat Compare Operand Not And Or Neg Pos Add Sub Mul Div FloorDiv"
    " Mod Pow CondExpr Break Continue"
)
FILTERS = _names(
    "abs capitalize count d default first float int items last length lower map reject rejectattr reverse"
    " select selectattr title trim upper"
)
METHODS = {
    str: _names(
        "capitalize count endswith find index isalnum isalpha isdigit isspace join lower lstrip removeprefix"
        " removesuffix replace rfind rsplit rstrip split splitlines startswith strip title upper"
    ),
    dict: _names("get items keys values"),
    LoopContext: _names("changed cycle"),
}
DATE_FORMAT = re.compile(r"(?:%-?[A-Za-z%]|[^%])*")


class _Allowance:
    """What one rendering may still use."""

    def __init__(self, steps: int, characters: int) -> None:
        self.steps = steps
        self.characters = characters
        self.deadline = time.monotonic() + SECONDS

    def spend(self, steps: int = 0, characters: int = 0) -> None:
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0 or self.characters < 0 or time.monotonic() > self.deadline:
            raise SecurityError("it does too much work")


_allowance: ContextVar[_Allowance] = ContextVar("_allowance")


def spend(steps: int = 0, characters: int = 0) -> None:
    """Take from the allowance of the rendering that is going on; SecurityError where it is used up."""
    _allowance.get().spend(steps, characters)


def measure(value: Any) -> Any:
    """Spend for every character and item of a value, and return it.

    Nested lists can refer to the same list many times and so be exponentially larger than they look.
    """
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > DEPTH:
            raise SecurityError("it nests lists too deeply")
        if isinstance(item, str):
            spend(characters=len(item))
        elif isinstance(item, (list, tuple)):
            spend(steps=len(item))
            waiting += [(part, depth + 1) for part in item]
        elif isinstance(item, dict):
            spend(steps=len(item))
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif depth and not (item is None or isinstance(item, (bool, int, float, Undefined))):
            raise SecurityError(f"it puts a {type(item).__name__} into a list")
    return value


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    """Iterate, one step an item."""
    for value in values:
        spend(steps=1)
        yield value


def _text(value: Any) -> str:
    """Make text of a value that has a text: not of functions, iterators and the like."""
    if isinstance(value, str):
        spend(characters=len(value))
        return str(value)
    if isinstance(value, Undefined):
        return str(value)
    if value is not None and not isinstance(value, (bool, int, float, list, tuple, dict)):
        raise SecurityError(f"it prints a {type(value).__name__}")
    text = str(measure(value))
    spend(characters=len(text))
    return text


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """Count what is printed; with a context, so that Jinja does not run it while compiling."""
    return _text(value)


def _concatenate(first: Any, *others: Any) -> str:
    return "".join([_text(first), *map(_text, others)])


def _list(values: Iterable[Any]) -> list[Any]:
    return list(_counted(values))


def _sort(values: Iterable[Any], reverse: bool = False) -> list[Any]:
    return sorted(measure(_list(values)), reverse=reverse)


def _join(values: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    items = _list(values)
    if attribute is not None:
        items = [item[attribute] for item in items]
    spend(characters=len(separator) * len(items))
    return _text(separator).join([_text(item) for item in items])


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    text = _text(text)
    spend(characters=text.count(old) * len(new))
    return text.replace(old, new, count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("it indents JSON by more than 16")
    text = json.dumps(
        measure(value), ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    spend(characters=len(text))
    return text


def _iterated(values: Any) -> Any:
    """Count what a loop will go over, also the items that its condition leaves out."""
    if not hasattr(values, "__len__"):
        return _counted(values)
    spend(steps=len(values))
    return values


def _tick(characters: int) -> str:
    """Count one round of a loop, with the characters of plain text in its body."""
    spend(steps=1, characters=characters)
    return ""


def _measured(function: Any) -> Callable[..., Any]:
    """Wrap a filter or test of Jinja so that what it is given is counted first."""

    @wraps(function)  # keeps Jinja's mark on functions that want the environment or the context
    def wrapper(*arguments: Any, **named: Any) -> Any:
        for value in (*arguments, *named.values()):
            measure(value)
        return function(*arguments, **named)

    return wrapper


def _raise_exception(message: Any) -> None:
    raise TokenizerError(f"the chat template refuses the messages: {' '.join(_text(message)[:500].split())}")


def _strftime_now(format: str) -> str:
    if len(format) > 100 or not DATE_FORMAT.fullmatch(format):
        raise SecurityError("it uses a strange date format")
    return datetime.now().strftime(format)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    spend(steps=len(numbers))
    return numbers


GLOBALS: dict[str, Any] = {
    "raise_exception": _raise_exception,
    "strftime_now": _strftime_now,
    "range": _range,
    "namespace": Namespace,
}
# Names with a "!" cannot be written in a template: these are put in by `_Guard`.
OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "join": _join,
    "list": _list,
    "replace": _replace,
    "safe": _text,
    "sort": _sort,
    "string": _text,
    "tojson": _tojson,
    "!concatenate": _concatenate,
    "!measure": measure,
    "!iterate": _iterated,
    "!tick": _tick,
}


class _Guard(NodeTransformer):
    """Refuses what chat templates have no use for, and adds counting to what could run long."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if type(node).__name__ not in NODES:
            raise SecurityError(f"it uses {type(node).__name__}, which is not allowed")
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._with_tick(node)
        node.iter = _filter(node.iter, "!iterate")
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._with_tick(node)

    def _with_tick(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        plain = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_filter(nodes.Const(plain), "!tick")]))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node.nodes[0], "!concatenate", node.nodes[1:])

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filter(node.expr, "!measure")
        for operand in node.ops:
            operand.expr = _filter(operand.expr, "!measure")
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _filter(node.key, "!measure")  # a key is hashed, all of it
        return node


def _filter(node: nodes.Node, name: str, arguments: list[nodes.Expr] | None = None) -> nodes.Expr:
    return nodes.Filter(node, name, arguments or [], [], None, None, lineno=node.lineno or 1)


class _Generation(Extension):
    """`{% generation %}` marks what the model writes, for training; rendering passes it over."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a plain attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # nothing of a template runs while it is compiled
            finalize=_finalize,
            extensions=[LoopControlExtension, _Generation],
        )
        self.globals = dict(GLOBALS)
        theirs: dict[str, Any] = JINJA_FILTERS
        self.filters = {name: _measured(theirs[name]) for name in FILTERS} | OWN_FILTERS
        self.tests = {name: _measured(test) for name, test in JINJA_TESTS.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Guard().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if callable(value) and attr not in _methods(obj):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it asks for {attribute[:50]!r} of {type(obj).__name__}, which is not allowed")

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int, slice, Undefined)):
            raise SecurityError(f"it uses a {type(argument).__name__} as a key")
        item = super().getitem(obj, argument)
        if isinstance(argument, slice):
            spend(steps=0 if isinstance(item, str) else len(item), characters=len(item))
        return item

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if not isinstance(obj, (Macro, LoopContext, Undefined)) and obj not in GLOBALS.values():
            if name not in _methods(owner):
                raise SecurityError(f"it calls {name[:50] or type(obj).__name__}, which is not allowed")
            for value in (owner, *args, *kwargs.values()):
                measure(value)
        if isinstance(owner, str) and name == "join":
            (values,) = args
            return _join(values, owner)
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args)
        result = super().call(context, obj, *args, **kwargs)
        return measure(result) if isinstance(owner, (str, dict)) else result


def _methods(owner: Any) -> frozenset[str]:
    return next((names for type, names in METHODS.items() if isinstance(owner, type)), frozenset())


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Spend for what an operation will make, or refuse it, before it is done."""
    if operator == "%" and isinstance(left, str):
        raise SecurityError("it formats text with %")
    if operator == "**" and not (_is_small(left) and _is_small(right)):
        raise SecurityError("it computes a large power")
    if operator == "+" and isinstance(left, (str, list, tuple)):
        spend(**{_unit(left): len(left) + (len(right) if hasattr(right, "__len__") else 0)})
    if operator == "*":
        _check_product(left, right)


def _check_product(left: Any, right: Any) -> None:
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(times, int):
            spend(**{_unit(value): len(value) * max(0, times)})
    if (
        isinstance(left, int)
        and isinstance(right, int)
        and left.bit_length() + right.bit_length() > INTEGER_BITS
    ):
        raise SecurityError("it computes a large number")


def _unit(value: Any) -> str:
    return "characters" if isinstance(value, str) else "steps"


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= EXPONENT


class SandboxedTemplate:
    """A compiled template; the same one can be rendered many times."""

    def __init__(self, source: str) -> None:
        """Compile; TokenizerError where it is too long, no Jinja, or uses what is not allowed."""
        if len(source) > SOURCE_LIMIT:
            raise TokenizerError(f"the chat template has more than {SOURCE_LIMIT:,} characters")
        try:
            self._template = _Environment().from_string(source)
        except Exception as error:
            raise _one_line(error) from error

    def render(self, variables: Mapping[str, Any], size: int) -> str:
        """Render.

        variables   plain values: str, numbers, None, lists and dicts of them
        size        characters and items in them, which the allowance grows with
        raises      TokenizerError, one line
        """
        token = _allowance.set(_Allowance(STEPS + 16 * size, CHARACTERS + 64 * size))
        try:
            return "".join(self._output(variables))
        except TokenizerError:
            raise
        except Exception as error:
            raise _one_line(error) from error
        finally:
            _allowance.reset(token)

    def _output(self, variables: Mapping[str, Any]) -> Iterator[str]:
        for text in self._template.generate(variables):
            spend(characters=len(text))
            yield text


def _one_line(error: Exception) -> TokenizerError:
    """Say in one line what went wrong; whatever a template raises is the template's fault."""
    text = " ".join(str(error).split())[:300]
    line = getattr(error, "lineno", None)
    where = f" (line {line})" if line is not None else ""
    if isinstance(error, TemplateError):
        return TokenizerError(f"the chat template cannot be used{where}: {text}")
    return TokenizerError(f"the chat template cannot be used{where}: {type(error).__name__}: {text}")
