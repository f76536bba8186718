"""Reads the public classes and functions of two packages, and compares their signatures.

The real WebUI is read from its source: its modules need packages, and have side effects, that a test must not ask for.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PUBLIC_SPECIAL = {"__init__", "__call__"}


@dataclass(frozen=True)
class Signature:
    """How a function may be called, without `self` or `cls`."""

    positional: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()
    keyword_only: tuple[str, ...] = ()
    var_positional: bool = False
    var_keyword: bool = False
    is_property: bool = False


@dataclass
class ClassInfo:
    """A class with everything that it inherits from classes of the same package."""

    methods: dict[str, Signature] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)
    fields: dict[str, bool] = field(default_factory=dict)  # of a dataclass, in order: name -> has a default

    def inherit(self, base: ClassInfo) -> None:
        """Takes what `base` has and this class has not."""
        self.methods = {**base.methods, **self.methods}
        self.attributes |= base.attributes
        self.fields = {**base.fields, **self.fields}


@dataclass
class ModuleInfo:
    """The public names of one module."""

    functions: dict[str, Signature] = field(default_factory=dict)
    classes: dict[str, ClassInfo] = field(default_factory=dict)


def is_public(name: str) -> bool:
    """Whether other code may use `name`."""
    return not name.startswith("_") or name in PUBLIC_SPECIAL


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """Last names of the decorators: `dataclasses.dataclass(repr=False)` gives "dataclass"."""
    names = set()
    for decorator in node.decorator_list:
        target = decorator.func if isinstance(decorator, ast.Call) else decorator
        names.add(target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", ""))
    return names


def function_signature(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> Signature:
    """The signature of a `def`. A `method` loses its first parameter, unless it is static."""
    decorators = _decorators(node)
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args]]
    defaults = set(names[len(names) - len(node.args.defaults) :])
    defaults |= {a.arg for a, default in zip(node.args.kwonlyargs, node.args.kw_defaults) if default is not None}
    if method and "staticmethod" not in decorators:
        names = names[1:]
    return Signature(
        positional=tuple(names),
        optional=frozenset(defaults),
        keyword_only=tuple(argument.arg for argument in node.args.kwonlyargs),
        var_positional=node.args.vararg is not None,
        var_keyword=node.args.kwarg is not None,
        is_property=bool(decorators & {"property", "cached_property", "setter"}),
    )


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, also those inside `if`, `try` and `with`."""
    for node in body:
        yield node
        for part in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, part, []))


def _is_field(node: ast.AnnAssign) -> bool:
    """Whether an annotated name of a dataclass is a parameter of its constructor."""
    if "ClassVar" in ast.unparse(node.annotation):
        return False
    if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("field"):
        return not any(k.arg == "init" and ast.unparse(k.value) == "False" for k in node.value.keywords)
    return True


def _field_has_default(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        return any(keyword.arg in ("default", "default_factory") for keyword in value.keywords)
    return value is not None


def _attributes_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """Names that a method assigns on `self`."""
    found = set()
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                found.add(target.attr)
    return found


def class_info(node: ast.ClassDef) -> ClassInfo:
    """What the body of a class defines."""
    info = ClassInfo()
    for item in _statements(node.body):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            info.attributes |= _attributes_of(item)
            if is_public(item.name):
                info.methods[item.name] = function_signature(item, method=True)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            info.attributes.add(item.target.id)
            if "dataclass" in _decorators(node) and _is_field(item):
                info.fields[item.target.id] = _field_has_default(item.value)
        elif isinstance(item, ast.Assign):
            info.attributes |= {target.id for target in item.targets if isinstance(target, ast.Name)}
    return info


class Package:
    """The source of a package. `folder` holds its modules, `name` is how they import each other."""

    def __init__(self, folder: Path, name: str = "modules") -> None:
        self.folder = folder
        self.name = name
        self._modules: dict[str, ModuleInfo] = {}

    def module_names(self) -> list[str]:
        """Dotted names below the package, such as `api.models`."""
        files = sorted(self.folder.rglob("*.py"))
        parts = [file.relative_to(self.folder).with_suffix("").parts for file in files]
        names = [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]
        return [name for name in names if name]

    def _file(self, module: str) -> Path | None:
        path = self.folder.joinpath(*module.split("."))
        candidates = (path.with_suffix(".py"), path / "__init__.py")
        return next((file for file in candidates if file.is_file()), None)

    def module(self, name: str) -> ModuleInfo:
        """The public names of a module, those that it imports from its package included. Empty when it is not there."""
        if name in self._modules:
            return self._modules[name]
        info = self._modules[name] = (
            ModuleInfo()
        )  # known before it is read, as modules may import each other in a circle
        file = self._file(name)
        if file is None:
            return info
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in the host's strings, none of our business
            tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in _statements(tree.body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if is_public(node.name):
                    info.functions[node.name] = function_signature(node, method=False)
            elif isinstance(node, ast.ClassDef):
                info.classes[node.name] = self._with_bases(node, info)
            elif isinstance(node, ast.ImportFrom):
                self._import(node, name, file, info)
        return info

    def names(self, module: str) -> set[str]:
        """All public names of a module: what it defines, imports, and is given by others (`devices.randn = randn`)."""
        file = self._file(module)
        if file is None:
            return set()
        found: set[str] = set()
        for node in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        given = re.compile(rf"^{module.split('.')[-1]}\.(\w+) = ", re.MULTILINE)
        for other in self.folder.glob("*.py"):
            found |= set(given.findall(other.read_text(encoding="utf-8")))
        return found

    def _import(self, node: ast.ImportFrom, importer: str, file: Path, info: ModuleInfo) -> None:
        source = node.module or ""
        if node.level:
            levels = node.level - (1 if file.name == "__init__.py" else 0)
            parents = importer.split(".")
            kept = parents[: len(parents) - levels] if levels else parents
            source = ".".join([*kept, source]).strip(".")
        elif source.startswith(self.name + "."):
            source = source[len(self.name) + 1 :]
        else:
            return
        imported = self.module(source)
        for alias in node.names:
            if alias.name == "*":
                info.functions.update(imported.functions)
                info.classes.update(imported.classes)
            elif alias.name in imported.functions:
                info.functions[alias.asname or alias.name] = imported.functions[alias.name]
            elif alias.name in imported.classes:
                info.classes[alias.asname or alias.name] = imported.classes[alias.name]

    def _with_bases(self, node: ast.ClassDef, info: ModuleInfo) -> ClassInfo:
        result = class_info(node)
        own_constructor = "__init__" in result.methods
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in info.classes:
                result.inherit(info.classes[base.id])
            elif isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name):
                result.inherit(self.module(base.value.id).classes.get(base.attr, ClassInfo()))
        if "dataclass" in _decorators(node) and not own_constructor:
            with_default = frozenset(name for name, default in result.fields.items() if default)
            result.methods["__init__"] = Signature(positional=tuple(result.fields), optional=with_default)
        return result


class Imported(Package):
    """A package as it is when it is imported; of its classes only what the code in `standalone` defines."""

    def module(self, name: str) -> ModuleInfo:
        if name not in self._modules:
            info = self._modules[name] = ModuleInfo()
            module = importlib.import_module(f"{self.name}.{name}")
            for key in getattr(module, "__all__", ()):
                value = getattr(module, key)
                if inspect.isclass(value):
                    info.classes[key] = _loaded_class(value)
                elif inspect.isfunction(value):
                    info.functions[key] = _loaded_function(value)
        return self._modules[name]


def _loaded_function(function: Callable[..., object], method: bool = False) -> Signature:
    parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    if method and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
        del parameters[0]
    kinds = {kind: tuple(p.name for p in parameters if p.kind is kind) for kind in inspect._ParameterKind}
    return Signature(
        positional=kinds[inspect.Parameter.POSITIONAL_ONLY] + kinds[inspect.Parameter.POSITIONAL_OR_KEYWORD],
        optional=frozenset(p.name for p in parameters if p.default is not p.empty),
        keyword_only=kinds[inspect.Parameter.KEYWORD_ONLY],
        var_positional=bool(kinds[inspect.Parameter.VAR_POSITIONAL]),
        var_keyword=bool(kinds[inspect.Parameter.VAR_KEYWORD]),
    )


def _loaded_class(cls: type) -> ClassInfo:
    info = ClassInfo()
    for base in cls.__mro__:
        if not base.__module__.startswith("standalone."):
            continue
        found = ClassInfo()
        for key, value in vars(base).items():
            if not is_public(key):
                continue
            if isinstance(value, property):
                found.methods[key] = Signature(is_property=True)
            elif isinstance(value, staticmethod):
                found.methods[key] = _loaded_function(value.__func__)
            elif isinstance(value, classmethod):
                found.methods[key] = _loaded_function(value.__func__, method=True)
            elif inspect.isfunction(value):
                found.methods[key] = _loaded_function(value, method=True)
        source = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(source, ast.ClassDef)
        found.attributes = class_info(source).attributes
        info.inherit(found)
    return info


def compare(real: Signature, ours: Signature) -> list[str]:
    """Reasons why a call that fits `real` does not fit `ours`; empty when every such call fits."""
    if real.is_property != ours.is_property:
        return ["is a property in the WebUI" if real.is_property else "is a method in the WebUI"]
    if real.is_property:
        return []
    problems = []
    count = min(len(real.positional), len(ours.positional))
    if real.positional[:count] != ours.positional[:count]:
        i = next(i for i, (one, other) in enumerate(zip(ours.positional, real.positional)) if one != other)
        problems.append(f"takes {ours.positional[i]} in place {i + 1}, the WebUI {real.positional[i]}")
    elif len(ours.positional) < len(real.positional) and not ours.var_positional:
        problems.append(f"lacks {', '.join(real.positional[count:])}")
    if real.var_positional and not ours.var_positional:
        problems.append("lacks *args")
    if real.var_keyword and not ours.var_keyword:
        problems.append("lacks **kwargs")
    known = {*ours.positional, *ours.keyword_only}
    lost = [name for name in real.keyword_only if name not in known]
    if lost and not ours.var_keyword:
        problems.append(f"lacks the keyword {', '.join(lost)}")
    asked = [name for name in (*ours.positional, *ours.keyword_only) if name not in ours.optional]
    stricter = [n for n in asked if n in real.optional or n not in (*real.positional, *real.keyword_only)]
    if stricter and not problems:
        problems.append(f"requires {', '.join(stricter)}, which the WebUI does not")
    return problems


def differences(real: Package, ours: Package) -> list[str]:
    """One line for each function or method of `ours` that `real` has under the same name and that does not fit."""
    lines = []
    for name in ours.module_names():
        mine, theirs = ours.module(name), real.module(name)
        pairs = [(key, theirs.functions[key], mine.functions[key]) for key in mine.functions if key in theirs.functions]
        for cls in mine.classes.keys() & theirs.classes.keys():
            methods, wanted = mine.classes[cls].methods, theirs.classes[cls].methods
            pairs += [(f"{cls}.{key}", wanted[key], methods[key]) for key in methods if key in wanted]
        lines += [f"{name}.{key} {problem}" for key, w, m in pairs for problem in compare(w, m)]
    return sorted(set(lines))


def missing(real: Package, ours: Package, module: str, name: str) -> list[str]:
    """What `real` has in the class or under the function pattern `module.name` and `ours` has not.

    `name` is a class, or a prefix of functions that ends in ``*``.
    """
    theirs, mine = real.module(module), ours.module(module)
    if name.endswith("*"):
        return sorted(f for f in theirs.functions if f.startswith(name[:-1]) and f not in mine.functions)
    wanted, have = theirs.classes[name], mine.classes.get(name)
    if have is None:
        return ["the class itself"]
    members = set(wanted.methods) | {attribute for attribute in wanted.attributes if is_public(attribute)}
    return sorted(members - set(have.methods) - have.attributes - set(PUBLIC_SPECIAL))
