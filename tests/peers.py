"""The two libraries that train sparse dictionaries, imported without what they would bring along.

Both import a tracker or a tracing library that nothing here calls. wandb is 60 MB and reports home; nnsight adds an
attribute to `object` and replaces `Tensor.backward` for the whole process. An empty module stands in for each while
the import lasts.
"""

import importlib
import sys
import warnings
from functools import cache
from types import ModuleType


@cache
def sae_lens() -> ModuleType:
    return _imported("sae_lens", "sae_lens.training.sae_trainer")


@cache
def dictionary_learning() -> ModuleType:
    return _imported("dictionary_learning", "dictionary_learning.trainers.matryoshka_batch_top_k")


def _imported(package: str, *submodules: str) -> ModuleType:
    stand_ins = {name: ModuleType(name) for name in ("wandb", "nnsight") if name not in sys.modules}
    for module in stand_ins.values():
        module.LanguageModel = object  # an annotation of theirs
    sys.modules.update(stand_ins)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they use what others of them deprecate
            for name in submodules:
                importlib.import_module(name)
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return sys.modules[package]
