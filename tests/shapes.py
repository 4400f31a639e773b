"""Check shape annotations while the tests run, and only those.

jaxtyping's own import hook wraps every function of a module. Seven in ten, in modules that name
any shape, name none, and binding their arguments took an eighth of the suite's time.
"""

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterable, Sequence
from types import CodeType, ModuleType
from typing import Any

CHECK = "__import__('jaxtyping').jaxtyped(typechecker=__import__('beartype').beartype)"


class Marking(ast.NodeTransformer):
    """Put the check next to every function, and around every dataclass, that names a shape."""

    def __init__(self, tree: ast.Module) -> None:
        self.shapes = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
            for alias in node.names
        }
        self.marked: list[str] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        arguments = (a.annotation for a in ast.walk(node.args) if isinstance(a, ast.arg))
        if self._names_a_shape([node.returns, *arguments]):
            node.decorator_list.append(self._check(node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        fields = (part.annotation for part in node.body if isinstance(part, ast.AnnAssign))
        made = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        if made and self._names_a_shape(fields):
            node.decorator_list.insert(0, self._check(node))
        return node

    def _names_a_shape(self, annotations: Iterable[ast.expr | None]) -> bool:
        parts = (part for a in annotations if a is not None for part in ast.walk(a))
        return any(isinstance(part, ast.Name) and part.id in self.shapes for part in parts)

    def _check(self, node: ast.FunctionDef | ast.ClassDef) -> ast.expr:
        self.marked.append(node.name)
        return ast.copy_location(ast.parse(CHECK, mode="eval").body, node)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)  # never the cached code, which has no checks
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        tree = ast.parse(data, path)
        marked = ast.fix_missing_locations(Marking(tree).visit(tree))
        return compile(marked, path, "exec", dont_inherit=True, optimize=_optimize)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        plain = spec and spec.loader
        if isinstance(plain, importlib.machinery.SourceFileLoader):
            source = plain.get_source(name)
            if spec is not None and source is not None and "from jaxtyping import" in source:
                spec.loader = _Loader(name, plain.path)
        return spec


def check_shapes(package: str) -> None:
    """Check the shapes of what is imported from a package from now on."""
    sys.meta_path.insert(0, _Finder(package))
