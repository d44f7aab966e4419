"""No bytes that the project reads can run code: held by reading every module that runs, and shown on broken ones."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("client/driftline/client", "configs", "docker", "graph", "llm", "model", "serving", "stream")
MODULES = {
    "cloudpickle", "code", "codeop", "commands", "cPickle", "dill", "joblib", "jsonpickle", "marshal",
    "multiprocessing", "pickle", "pickletools", "pty", "runpy", "shelve",
}  # fmt: skip
"""They decode data into objects of any class, run text as code, or send pickles between processes."""
CALLS = {
    "__import__", "compile", "eval", "exec", "importlib.import_module", "numpy.fromregex", "os.popen", "os.system",
    "pandas.read_pickle", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.jit.load", "torch.load",
    "torch.save", "torch.package.PackageImporter", "yaml.full_load", "yaml.full_load_all", "yaml.load_all",
    "yaml.unsafe_load", "yaml.unsafe_load_all",
}  # fmt: skip
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.CSafeLoader", "yaml.BaseLoader", "yaml.CBaseLoader"}
MAY = {("stream/ops/child.py", "imports runpy")}
"""Runs a module of ours: a supervisor names it on the command line that it makes."""
NUMPY = {
    f"{module}.{name}"
    for module, names in (("numpy", ("load", "save")), ("numpy.lib.format", ("read_array", "write_array")))
    for name in names
}
"""They pickle arrays of objects unless told not to."""


def offences(source: str) -> list[str]:
    """Lines of a module that could turn data into code."""
    tree = ast.parse(source)
    names = dict(aliases(tree))
    safe = SAFE_LOADERS | {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and {called(base, names) for base in node.bases} & SAFE_LOADERS
    }
    found = [
        (node.lineno, f"imports {module}")
        for node in ast.walk(tree)
        for module in modules(node)
        if module.split(".")[0] in MODULES
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += [(node.lineno, fault) for fault in faults(node, called(node.func, names), names, safe)]
    return [f"{line}: {fault}" for line, fault in sorted(found)]


def modules(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def aliases(tree):
    """(name in the module, whole name) of everything imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def called(node, names):
    first, dot, rest = ast.unparse(node).partition(".")
    return names.get(first, first) + dot + rest


def faults(call, name, names, safe):
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    constants = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
    if name in CALLS:
        yield f"calls {name}"
    if "shell" in given:
        yield "starts a shell"
    if name == "subprocess.run" and call.args and isinstance(call.args[0], ast.Constant):
        yield "runs a line of text instead of a list of arguments"
    if name == "yaml.load" and called([*call.args, *given.values()][1], names) not in safe:
        yield "loads YAML with a loader that makes objects"
    if (name in NUMPY or "allow_pickle" in given) and constants.get("allow_pickle") is not False:
        yield "leaves NumPy's pickles on"
    if "trust_remote_code" in given:
        yield "trusts code beside a model"
    model = "Model" in name and name.endswith(".from_pretrained")
    if model and not constants.get("use_safetensors") and "gguf_file" not in given:
        yield "may read a model that is a pickle"


def test_no_module_can_turn_what_it_reads_into_code():
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    assert len(paths) > 150
    found = {
        (str(path.relative_to(ROOT)), line.partition(": ")[2])
        for path in paths
        for line in offences(path.read_text("utf-8"))
    }
    assert found == MAY


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill as d",
        "from multiprocessing import Queue",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x', weights_only=True)",
        "from torch import load as read\nread('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from numpy.lib import format as npy\nnpy.read_array(file)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text, yaml.UnsafeLoader)",
        "import yaml\nclass Mine(yaml.Loader): pass\nyaml.load(text, Mine)",
        "import yaml\nyaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "import os\nos.system(text)",
        "from os import popen\npopen(text)",
        "import subprocess\nsubprocess.run(['a'], shell=True)",
        "import subprocess as s\ns.run('a b')",
        "from transformers import AutoModel\nAutoModel.from_pretrained(folder)",
        "from transformers import AutoModelForCausalLM as M\nM.from_pretrained(folder, use_safetensors=False)",
    ],
)
def test_what_could_turn_data_into_code_is_found(source):
    assert len(offences(source)) == 1, offences(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import yaml\nclass Mine(yaml.SafeLoader): pass\nyaml.load(text, Mine)",
        "import yaml\nyaml.load(text, Loader=yaml.BaseLoader)",
        "import subprocess\nsubprocess.run(['a', text])",
        "from transformers import AutoModel\nAutoModel.from_pretrained(folder, use_safetensors=True)",
    ],
)
def test_what_can_not_is_left_alone(source):
    assert offences(source) == []
