"""Has timm know the project's own networks from the moment that both packages are imported, in either order.

A published network of `modeling/cnn.py` then loads by transformers and timm after `import hf_pneumonia`. That
must import neither of them: they take seconds, and `python -m hf_pneumonia --help` needs none.
"""

import importlib
import sys


def register_networks() -> None:
    """Register the networks of `modeling/cnn.py` now if timm is imported, else as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module("hf_pneumonia.modeling.cnn")
    else:
        sys.meta_path.insert(0, _AfterTimm())


class _AfterTimm:
    """A finder of imports that finds timm as the other finders do, and steps aside once timm is imported.

    Only to look for timm, as transformers does by `importlib.util.find_spec`, imports nothing.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "timm":
            return None
        others = [
            finder for finder in list(sys.meta_path) if finder is not self and hasattr(finder, "find_spec")
        ]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module) -> None:
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module("hf_pneumonia.modeling.cnn")

        # On this one loader, which keeps its class and everything else that timm's files are read by.
        spec.loader.exec_module = run_and_register
        return spec
