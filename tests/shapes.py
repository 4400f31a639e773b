"""Check shape annotations while the tests run, and only those.

jaxtyping's own import hook wraps every function of a module; five in six here name no shape, and
binding their arguments took an eighth of the suite's time.
"""

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

SHAPED = ("Bool[", "Float[", "Int[", "UInt8[")  # jaxtyping's, as they are written
CHECK = "__import__('jaxtyping').jaxtyped(typechecker=__import__('beartype').beartype)"


class _Marked(ast.NodeTransformer):
    """Put the check next to every function, and around every dataclass, that names a shape."""

    def __init__(self) -> None:
        self.check = ast.parse(CHECK, mode="eval").body

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        arguments = ast.walk(node.args)
        named = [node.returns, *(a.annotation for a in arguments if isinstance(a, ast.arg))]
        if _shaped(named):
            node.decorator_list.append(ast.copy_location(self.check, node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        fields = [part.annotation for part in node.body if isinstance(part, ast.AnnAssign)]
        if _shaped(fields) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            node.decorator_list.insert(0, ast.copy_location(self.check, node))
        return node


def _shaped(annotations: Sequence[ast.expr | None]) -> bool:
    return any(mark in ast.unparse(a) for a in annotations if a is not None for mark in SHAPED)


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)  # never the cached code, which has no checks
        return self.source_to_code(self.get_data(path), path)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        tree = ast.fix_missing_locations(_Marked().visit(ast.parse(data, path)))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


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
