"""A seeded sample of mutants: cosmic-ray's operators, less what only changes words or types."""

import ast
import builtins
import dataclasses
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator

from cosmic_ray import plugins
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Example, Operator
from parso.python.tree import Keyword

from tests.mutation import scope

# One plausible slip each; cosmic-ray has all pairs, most of which fail at the import.
BINARY = (
    "Add_Sub", "Sub_Add", "Mul_Add", "Div_Mul", "FloorDiv_Mul", "Mod_Mul", "Pow_Mul",
    "BitOr_BitAnd", "BitAnd_BitOr", "LShift_RShift", "RShift_LShift",
)  # fmt: skip
COMPARISON = (
    "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
    "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is",
)  # fmt: skip
OPERATORS = (
    *(f"ReplaceBinaryOperator_{pair}" for pair in BINARY),
    *(f"ReplaceComparisonOperator_{pair}" for pair in COMPARISON),
    *(f"ReplaceUnaryOperator_Delete_{sign}" for sign in ("USub", "Not", "Invert")),
    *("AddNot", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "NumberReplacer"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    "ExceptionReplacer",
)
LOGGERS = {"logging", "logger", "warnings"}
COSMETIC_KEYWORDS = {"strict", "indent", "stacklevel"}  # zip(strict=), json.dumps(indent=)


class DeleteStatement(Operator):
    """Deletes a call whose result is unused, a `raise`, a `del` or an assignment like `+=`."""

    def mutation_positions(self, node):
        if node.type != "simple_stmt":
            return
        statement = node.children[0]
        call = statement.type == "atom_expr" and statement.children[-1].children[0] == "("
        adds = statement.type == "expr_stmt" and statement.children[1].type == "operator"
        adds = adds and statement.children[1] != "="
        if call or adds or statement.type in ("raise_stmt", "del_stmt"):
            yield statement.start_pos, statement.end_pos

    def mutate(self, node, index):
        statement = node.children[0]
        prefix = statement.get_first_leaf().prefix
        node.children[0] = Keyword("pass", statement.start_pos, prefix)
        return node

    @classmethod
    def examples(cls):
        return (Example("f(x)\n", "pass\n"), Example("x += 1\n", "pass\n"))


@functools.cache
def operators() -> dict[str, Operator]:
    """Mutation operators by name."""
    made = {name: plugins.get_operator(f"core/{name}")() for name in OPERATORS}
    return made | {"DeleteStatement": DeleteStatement()}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A place and a change.

    Attributes:
      key: identity, which survives edits of other lines than its own.
      occurrence: of the operator in the module, cosmic-ray's way to name a place.
      start, end: line from 1 and column from 0.
    """

    key: str
    package: str
    module: str
    operator: str
    occurrence: int
    start: tuple[int, int]
    end: tuple[int, int]

    def code(self, source: str) -> str:
        """The mutated module."""
        return mutate_code(source, operators()[self.operator], self.occurrence)


def draw(sources: dict[str, dict[str, str]], *, seed: int, count: int) -> list[Mutant]:
    """As many mutants of each package, package after package in turn.

    The order within a package is that of a hash of seed, operator and source line, so that an edit
    changes no other mutants than those of its own lines.

    Args:
      sources: package -> module -> code.
      count: of all packages together; fewer if they have no more.
    """
    drawn = [_distinct(package, modules, seed) for package, modules in sources.items()]
    turns = itertools.zip_longest(*drawn)
    return list(itertools.islice((m for turn in turns for m in turn if m is not None), count))


def _distinct(package: str, modules: dict[str, str], seed: int) -> Iterator[Mutant]:
    """Mutants in order, less those that are no program or one that there was before."""
    mutants = [m for path, code in modules.items() for m in candidates(package, path, code, seed)]
    programs = {(path, _program(code)) for path, code in modules.items()}
    for mutant in sorted(mutants, key=lambda m: m.key):
        program = mutant.module, _program(mutant.code(modules[mutant.module]))
        if program[1] and program not in programs:
            programs.add(program)
            yield mutant


def _program(code: str) -> str:
    """The syntax tree, without comments and layout; empty if it is not Python."""
    try:
        return ast.dump(ast.parse(code))
    except SyntaxError:  # cosmic-ray takes the bare star of parameters for a product
        return ""


def candidates(package: str, module: str, source: str, seed: int) -> Iterator[Mutant]:
    """All mutants of a module."""
    nodes, lines = list(ast_nodes(get_ast(source))), source.splitlines()
    skipped = list(cosmetic(source))
    same: Counter[str] = Counter()
    for name, operator in operators().items():
        places = [place for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (start, end) in enumerate(places):
            text = f"{seed}|{module}|{name}|{lines[start[0] - 1].strip()}"
            same[text] += 1
            if any(first <= start and end <= last for first, last in skipped):
                continue
            key = hashlib.blake2b(f"{text}|{same[text]}".encode(), digest_size=8).hexdigest()
            yield Mutant(key, package, module, name, occurrence, start, end)


def cosmetic(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of annotations, aliases of types, messages of errors and logs, and of the like."""
    for node in ast.walk(tree := ast.parse(source)):
        skipped: list[ast.AST | None] = []
        match node:
            case ast.arg(annotation=annotation) | ast.AnnAssign(annotation=annotation):
                skipped = [annotation]
            case ast.FunctionDef(returns=returns):
                skipped = [returns]
            case ast.ClassDef(decorator_list=decorators):  # dataclass(frozen=True)
                skipped = list(decorators)
            case ast.Raise(exc=ast.Call(args=args, keywords=keywords)):
                skipped = [*args, *keywords]
            case ast.Assert(msg=message):
                skipped = [message]
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name))) if name in LOGGERS:
                skipped = [node]
            case ast.keyword(arg=name) if name in COSMETIC_KEYWORDS:
                skipped = [node]
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                skipped = [node]
            case ast.BinOp(op=ast.Div(), right=ast.Constant(value=str()) | ast.JoinedStr()):
                yield _range(node.left)[1], _range(node.right)[0]  # the slash of a path
        for part in skipped:
            if part is not None:
                yield _range(part)
    for node in tree.body:
        if isinstance(node, ast.Assign) and _is_type(node.value):
            yield _range(node)


def _is_type(value: ast.expr) -> bool:
    """Whether it is a type like `int | Rows` or `dict[str, Rows]`, by how its first name begins."""
    while isinstance(value, ast.BinOp | ast.Subscript):
        value = value.left if isinstance(value, ast.BinOp) else value.value
    name = value.attr if isinstance(value, ast.Attribute) else getattr(value, "id", "")
    return bool(name) and (hasattr(builtins, name) or (name[0].isupper() and not name.isupper()))


def _range(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def sources(only: str = "") -> dict[str, dict[str, str]]:
    """Package -> module -> code, of modules whose path begins with `only`."""
    read = {
        package: {
            module: (scope.ROOT / module).read_text()
            for module in scope.modules(package)
            if module.startswith(only)
        }
        for package in scope.PACKAGES
    }
    return {package: modules for package, modules in read.items() if modules}
