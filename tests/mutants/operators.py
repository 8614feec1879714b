"""Ways to break a function of the library, found by its syntax tree.

A mutant is one change of one function, or one other rule for an operator. It is made in the process that
tries it: the changed source is compiled, and its code is put into the function objects that are there.
"""

from __future__ import annotations

import ast
import copy
import functools
import gc
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import secateur
from secateur.graph import rules
from tests.mutants import shifts

ROOT = Path(secateur.__file__).parent
GRAPH = """
    propagation/propagate propagation/rule_context propagation/constraints propagation/multihead labels
    channels wiring channel_graph cutting/tensors cutting/rescale costing cutting/substitute
    propagation/weights cutting/attributes propagation/constants propagation/factors
    propagation/linear_forms propagation/axis_choices propagation/findings propagation/operator_context
    propagation/known_sizes
"""
FILES = (
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "graph" / "rules").glob("*.py")),
    *(f"graph/{name}.py" for name in GRAPH.split()),
    "surgery.py",
    "plan.py",
)
"""Files whose functions are changed, relative to the package."""

ONLY = {"plan.py": {"PruningPlan.kept_slots"}, "graph/rules/__init__.py": {"find_rule"}}
"""Files of which only some functions are changed."""

LATE = {
    "graph/channel_graph.py",
    *(f"graph/cutting/{name}.py" for name in ("tensors", "rescale", "substitute", "attributes")),
    "surgery.py",
    "plan.py",
}
"""Files whose functions also run after the graph was worked out."""

UNCHANGED = ("describe", "_hint", "__getitem__", "register_rule", "__str__", "readers", "_check_fit")
"""Functions that say things to the user, or look for mistakes of the user."""

CALLS = """
    join join_rows freeze freeze_all set_role tie_parameter read read_item attribute statistic rescale
    add_macs constrain_sizes count_groups reject_axis reject_axis_mismatch record_axis tie_zeros
"""
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
}
OTHER_INDEX = {0: 1, 1: 0, -1: -2, -2: -1}
MASKS = {"flatnonzero"}
"""Functions that turn a mask into indices: a neighbour goes instead."""


@dataclass(frozen=True)
class Mutant:
    """One change of the library.

    Attributes:
        name: file, function, line and what is changed; never the same twice.
        kind: the kind of the change.
        file: relative to the package; of an operator's rule, the file of that rule.
        line: the line that is changed; 0 for a change of the table of rules.
        function: qualified name of the function that is changed.
        number: which change of the file it is.
        lines: the lines of the statement that is changed, to find the networks that reach it.
        operator: for a change of the table, the operator.
        instead: for a change of the table, the operator whose rule is taken.
    """

    name: str
    kind: str
    file: str
    line: int
    function: str
    number: int = -1
    lines: range = range(0)
    operator: str = ""
    instead: str = ""

    @property
    def is_late(self) -> bool:
        """Whether it may change what happens after the graph was worked out."""
        return self.file in LATE


class NotChangedError(Exception):
    """The changed source gives the same code."""


Path_ = tuple[tuple[str, int | None], ...]
"""The way from a function to one of its nodes: fields, and places in lists."""

Put = Callable[[ast.AST], ast.AST | None]
"""Makes the node that stands in place of a copy of the old one."""

Local = tuple[str, str, Put]
"""A kind of change, its description, and what makes it."""


def mutants(met: Sequence[str] = (), files: Sequence[str] = FILES) -> list[Mutant]:
    """All mutants, in a fixed order.

    Args:
        met: operators that the networks of the suite use; their rules are exchanged.
        files: relative to the package.
    """
    rules.find_rule("aten.relu.default")  # loads all files of rules
    found: list[Mutant] = []
    for file in files:
        _functions(str(ROOT / file))  # found now: frozen objects are not listed any more
        for number, (function, kind, lines, line, text, _) in enumerate(_changes(file)):
            name = f"{file.removeprefix('graph/')}:{function}:{line} {kind}: {text}"
            found.append(Mutant(name, kind, file, line, function, number, lines))
    found += _of_the_table(met)
    seen: dict[str, int] = {}
    result = []
    for item in found:
        count = seen[item.name] = seen.get(item.name, 0) + 1
        result.append(item if count == 1 else Mutant(**{**item.__dict__, "name": f"{item.name} #{count}"}))
    return result


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """Breaks the library within a block."""
    if mutant.operator:
        before = dict(rules._TABLE)
        rules._TABLE[mutant.operator] = rules._TABLE[mutant.instead]
        try:
            yield
        finally:
            rules._TABLE.clear()
            rules._TABLE.update(before)
        return
    changes = list(_changes(mutant.file))
    tree = ast.fix_missing_locations(changes[mutant.number][5]())
    path = ROOT / mutant.file
    new = _codes(compile(tree, str(path), "exec"))
    held = [(item, item.__code__) for item in _functions(str(path)) if _key(item.__code__) in new]
    try:
        changed = [
            item
            for item, old in held
            # A function that lost a variable of the function around it cannot be exchanged alone.
            if new[_key(old)].co_freevars == old.co_freevars and new[_key(old)] != old
        ]
        if not changed:
            raise NotChangedError(mutant.name)
        for item in changed:
            item.__code__ = new[_key(item.__code__)]
        yield
    finally:
        for item, old in held:
            item.__code__ = old


def _of_the_table(met: Sequence[str]) -> Iterator[Mutant]:
    """Each operator by the rule of an element-wise one, and by two others."""
    others = sorted(met)
    for operator in others:
        own = rules._TABLE[operator]
        file = f"graph/rules/{own.__module__.rpartition('.')[2]}.py"
        draw = zlib.crc32(operator.encode())
        chosen = ["aten.relu", others[draw % len(others)], others[(draw // 7 + 3) % len(others)]]
        chosen += {"aten.conv2d": ["aten.linear"], "aten.linear": ["aten.conv1d"]}.get(operator, [])
        for instead in dict.fromkeys(chosen):
            if rules._TABLE[instead] is not own:
                text = f"{operator} by the rule of {instead}"
                kind = "another operator's rule" if instead != "aten.relu" else "element-wise rule"
                yield Mutant(
                    f"{file.removeprefix('graph/')}:{text}",
                    kind,
                    file,
                    0,
                    own.__name__,
                    operator=operator,
                    instead=instead,
                )


@functools.cache
def _functions(path: str) -> tuple[types.FunctionType, ...]:
    return tuple(
        item
        for item in gc.get_objects()
        if type(item) is types.FunctionType and item.__code__.co_filename == path
    )


def _key(code: types.CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _codes(code: types.CodeType) -> dict[tuple[str, int], types.CodeType]:
    found = {}
    for item in code.co_consts:
        if isinstance(item, types.CodeType):
            found[_key(item)] = item
            found |= _codes(item)
    return found


_TREES: dict[str, ast.Module] = {}


def _changes(file: str) -> Iterator[tuple[str, str, range, int, str, Callable[[], ast.AST]]]:
    """Every change of a file: function, kind, lines, line, description, and what makes the changed tree."""
    if file not in _TREES:
        _TREES[file] = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    tree = _TREES[file]
    for qualified, function in _top_functions(tree):
        if qualified.rpartition(".")[2] in UNCHANGED or qualified not in ONLY.get(file, {qualified}):
            continue
        for path, change in _in_function(function, file):
            kind, line, text, put = change
            yield qualified, kind, _lines(function, path), line, text, _maker(tree, function, path, put)


def _lines(function: ast.FunctionDef, path: Path_) -> range:
    """The lines of the innermost statement on the way to a node; of a block, its head."""
    node, found = function, function.body[0]
    for name, place in path:
        held = getattr(node, name)
        node = held if place is None else held[place]
        if isinstance(node, ast.stmt):
            found = node
    inner = getattr(found, "body", None)
    return range(
        found.lineno, max(found.lineno + 1, inner[0].lineno if inner else (found.end_lineno or 0) + 1)
    )


def _maker(tree: ast.Module, function: ast.FunctionDef, path: Path_, put: Put) -> Callable[[], ast.AST]:
    def make() -> ast.AST:
        whole = copy.deepcopy(tree)
        twins = {id(old): new for old, new in zip(ast.walk(tree), ast.walk(whole), strict=True)}
        parent: ast.AST = twins[id(function)]
        for name, place in path[:-1]:
            found = getattr(parent, name)
            parent = found if place is None else found[place]
        name, place = path[-1]
        held = getattr(parent, name)
        old = held if place is None else held[place]
        new = put(old)
        if new is not old and new is not None:
            ast.copy_location(new, old)
        if place is None:
            setattr(parent, name, new)
        else:
            held[place] = new
        return whole

    return make


def _top_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    yield f"{node.name}.{item.name}", item


def _walk(node: ast.AST, path: Path_ = ()) -> Iterator[tuple[Path_, ast.AST]]:
    """All nodes of a function's body with the way to them; what is said to the user is left out."""
    for name, held in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "args") and isinstance(
            node, ast.FunctionDef | ast.AnnAssign | ast.arg
        ):
            continue
        if isinstance(held, ast.AST):
            yield from _visited(held, (*path, (name, None)))
        elif isinstance(held, list):
            for place, item in enumerate(held):
                if isinstance(item, ast.AST):
                    yield from _visited(item, (*path, (name, place)))


def _visited(node: ast.AST, path: Path_) -> Iterator[tuple[Path_, ast.AST]]:
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert):
        return
    yield path, node
    yield from _walk(node, path)


def _in_function(function: ast.FunctionDef, file: str) -> Iterator[tuple[Path_, tuple[str, int, str, Put]]]:
    rule = any(isinstance(item, ast.Call) and _called(item) == "rule" for item in function.decorator_list)
    body = function.body[1:] if ast.get_docstring(function) else function.body
    start = len(function.body) - len(body)
    if not body or function.name == "__init__":
        return
    for path, node in _walk(function):
        if path[0] == ("body", 0) and start == 1:
            continue
        for kind, text, put in _of_node(node, file):
            yield path, (kind, getattr(node, "lineno", function.lineno), _short(text), put)
    if rule:
        identity = ast.parse(f"return __mutant__.first({function.args.args[0].arg})").body[0]
        yield (("body", start),), ("return the input", body[0].lineno, function.name, lambda _: identity)
    elif function.returns is not None and ast.unparse(function.returns) == "None" and len(body) > 1:
        nothing = ast.Return(None)
        yield (("body", start),), ("do nothing", body[0].lineno, function.name, lambda _: nothing)


def _of_node(node: ast.AST, file: str) -> Iterator[Local]:
    makers: dict[type[ast.AST], Callable[..., Iterator[Local]]] = {
        ast.Expr: _of_statement,
        ast.Assign: _of_assignment,
        ast.AugAssign: _of_assignment,
        ast.Constant: _of_constant,
        ast.UnaryOp: _of_unary,
        ast.Compare: _of_comparison,
        ast.BoolOp: _of_boolean,
        ast.If: _of_condition,
        ast.IfExp: _of_condition,
        ast.For: _of_loop,
        ast.comprehension: _of_loop,
        ast.BinOp: _of_arithmetic,
        ast.Subscript: _of_subscript,
        ast.Return: _of_return,
        ast.Attribute: _of_attribute,
    }
    if isinstance(node, ast.Call):
        yield from _of_call(node, file)
    elif type(node) in makers:
        yield from makers[type(node)](node)


def _of_statement(node: ast.Expr) -> Iterator[Local]:
    if isinstance(node.value, ast.Call):
        name = _called(node.value)
        kind = f"delete {name}" if name in CALLS.split() else "delete call"
        yield kind, ast.unparse(node), lambda _: ast.Pass()


def _of_assignment(node: ast.Assign | ast.AugAssign) -> Iterator[Local]:
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    if isinstance(node, ast.AugAssign) or isinstance(target, ast.Subscript | ast.Attribute):
        yield "delete assignment", ast.unparse(node), lambda _: ast.Pass()


def _of_constant(node: ast.Constant) -> Iterator[Local]:
    if type(node.value) is int:
        if node.value in OTHER_INDEX:
            other = OTHER_INDEX[node.value]
            yield "swap index", f"{node.value} -> {other}", lambda _: ast.Constant(other)
        if node.value != 0:
            more = node.value + 1
            yield "shift constant", f"{node.value} -> {more}", lambda _: ast.Constant(more)
    elif type(node.value) is bool:
        yield "swap truth", str(node.value), lambda _: ast.Constant(not node.value)


def _of_unary(node: ast.UnaryOp) -> Iterator[Local]:
    if isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value = -node.operand.value  # type: ignore[operator]
        if value in OTHER_INDEX:
            other = ast.parse(str(OTHER_INDEX[value]), mode="eval").body
            yield "swap index", f"{value} -> {OTHER_INDEX[value]}", lambda _: other
    elif isinstance(node.op, ast.Not | ast.Invert):
        yield "negate", ast.unparse(node), lambda old: old.operand


def _of_comparison(node: ast.Compare) -> Iterator[Local]:
    for place, kind in enumerate(node.ops):
        if type(kind) in COMPARISONS:

            def put(old: ast.AST, place: int = place, kind: ast.cmpop = kind) -> ast.AST:
                old.ops[place] = COMPARISONS[type(kind)]()
                return old

            yield "comparison", ast.unparse(node), put


def _of_boolean(node: ast.BoolOp) -> Iterator[Local]:
    def put(old: ast.AST) -> ast.AST:
        old.op = ast.Or() if isinstance(old.op, ast.And) else ast.And()
        return old

    yield "and / or", ast.unparse(node), put
    for place, item in enumerate(node.values):

        def without(old: ast.AST, place: int = place) -> ast.AST:
            del old.values[place]
            return old if len(old.values) > 1 else old.values[0]

        yield "drop condition", ast.unparse(item), without


def _of_condition(node: ast.If | ast.IfExp) -> Iterator[Local]:
    def put(old: ast.AST) -> ast.AST:
        old.test = ast.copy_location(ast.UnaryOp(ast.Not(), old.test), old.test)
        return old

    yield "negate", f"if {ast.unparse(node.test)}", put


def _of_loop(node: ast.For | ast.comprehension) -> Iterator[Local]:
    text = f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"
    for kind in ("skip_first", "skip_last"):

        def put(old: ast.AST, kind: str = kind) -> ast.AST:
            old.iter = _helped(kind, old.iter)
            return old

        yield kind.replace("_", " "), text, put
    for place in range(len(node.ifs) if isinstance(node, ast.comprehension) else 0):

        def negated(old: ast.AST, place: int = place) -> ast.AST:
            old.ifs[place] = ast.copy_location(ast.UnaryOp(ast.Not(), old.ifs[place]), old.ifs[place])
            return old

        yield "negate", f"if {ast.unparse(node.ifs[place])} {text}", negated


def _of_arithmetic(node: ast.BinOp) -> Iterator[Local]:
    other = ARITHMETIC.get(type(node.op))
    if other is not None and not isinstance(node.left, ast.List):

        def put(old: ast.AST) -> ast.AST:
            old.op = other()
            return old

        yield "arithmetic", ast.unparse(node), put


def _of_subscript(node: ast.Subscript) -> Iterator[Local]:
    part, text = node.slice, ast.unparse(node)
    if isinstance(node.ctx, ast.Store):
        return
    if isinstance(part, ast.Tuple) and len(part.elts) == 2:

        def swapped(old: ast.AST) -> ast.AST:
            old.slice.elts.reverse()
            return old

        yield "swap rows and columns", text, swapped
    if isinstance(part, ast.Slice):

        def other(old: ast.AST) -> ast.AST:
            old.slice = ast.Slice(old.slice.upper, old.slice.lower, None)
            return old

        yield "other slice", text, other
    if isinstance(part, ast.Name):
        yield "neighbour", text, lambda old: _put_slice(old, _helped("neighbour", old.slice))


def _put_slice(node: ast.AST, part: ast.expr) -> ast.AST:
    node.slice = part
    return node


def _of_return(node: ast.Return) -> Iterator[Local]:
    if node.value is not None and not isinstance(node.value, ast.Constant):

        def put(old: ast.AST) -> ast.AST:
            old.value = _helped("blank", old.value)
            return old

        yield "forget labels", ast.unparse(node), put
        if isinstance(node.value, ast.Call) and _called(node.value) in ("Value", "replaced", "statistic"):

            def turned(old: ast.AST) -> ast.AST:
                old.value = _helped("turned", old.value)
                return old

            yield "reverse labels", ast.unparse(node), turned


def _of_attribute(node: ast.Attribute) -> Iterator[Local]:
    if node.attr == "T":
        yield "swap rows and columns", ast.unparse(node), lambda old: old.value


def _of_call(node: ast.Call, file: str) -> Iterator[Local]:
    yield from _of_marks(node)
    yield from _of_cuts(node, file)
    yield from _of_arrays(node)


def _of_marks(node: ast.Call) -> Iterator[Local]:
    """What a rule says of labels."""
    name, text = _called(node), ast.unparse(node)
    if name == "join" and len(node.args) >= 2:
        for helper in ("roll", "reverse"):
            yield f"{helper} labels", text, _argument(1, helper)
    if name in ("tie_parameter", "read") and len(node.args) >= 2:
        yield "roll labels", text, _argument(1 if name == "tie_parameter" else 2, "roll")
    if name == "attribute" and len(node.args) >= 2:
        # As if the attribute were there, but it does not change.
        yield "skip attribute", text, lambda _: ast.Constant(True)


def _of_cuts(node: ast.Call, file: str) -> Iterator[Local]:
    """What is cut: the neighbour, or not all."""
    name, text = _called(node), ast.unparse(node)
    if name in MASKS:
        yield "cut the neighbour", text, _argument(0, "roll")
    if name in ("_selection", "cut_tensor", "_cut_state") and file in LATE:
        yield "cut the neighbour", text, _argument(1 if name != "_selection" else 0, "neighbours")
        if name == "cut_tensor":
            yield "skip one dimension", text, _argument(1, "without_last")


def _of_arrays(node: ast.Call) -> Iterator[Local]:
    """Functions of arrays and lists that have another beside them."""
    name, text = _called(node), ast.unparse(node)
    plain = [place for place, item in enumerate(node.args) if not isinstance(item, ast.Starred)]
    if name == "reshape" and len(node.args) == 2:

        def swapped(old: ast.AST) -> ast.AST:
            old.args.reverse()
            return old

        yield "swap rows and columns", text, swapped
    if name in ("repeat", "tile") and _owner(node) == "np":

        def other(old: ast.AST) -> ast.AST:
            old.func.attr = "tile" if old.func.attr == "repeat" else "repeat"
            return old

        yield "repeat / tile", text, other
    if name in ("moveaxis", "unique", "sort", "sorted", "reversed") and plain:
        yield "leave order", text, lambda old: old.args[0]
    if name == "where" and len(node.args) == 3:

        def exchanged(old: ast.AST) -> ast.AST:
            old.args[1], old.args[2] = old.args[2], old.args[1]
            return old

        yield "swap arguments", text, exchanged
    if name in ("max", "min", "any", "all") and isinstance(node.func, ast.Name):
        instead = {"max": "min", "min": "max", "any": "all", "all": "any"}[name]

        def exchange(old: ast.AST) -> ast.AST:
            old.func.id = instead
            return old

        yield f"{name} -> {instead}", text, exchange


def _argument(place: int, helper: str) -> Put:
    def put(old: ast.AST) -> ast.AST:
        if place < len(old.args):
            old.args[place] = _helped(helper, old.args[place])
        return old

    return put


def _helped(name: str, value: ast.expr) -> ast.expr:
    """A call of a helper that stands among the builtin names."""
    function = ast.Attribute(ast.Name("__mutant__", ast.Load()), name, ast.Load())
    return ast.copy_location(ast.Call(function, [value], []), value)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _owner(node: ast.Call) -> str:
    return getattr(getattr(node.func, "value", None), "id", "")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."


shifts.install()
