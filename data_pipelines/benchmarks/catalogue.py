"""All public sets that can be prepared: those of the readers' modules."""

import dataclasses
import difflib
import fnmatch
import importlib
from collections.abc import Mapping, Sequence

from data_pipelines.benchmarks.public_set import PublicSet

PACKAGE = "data_pipelines.benchmarks"
READERS = (
    "mmeb",
    "karpathy",
    "long_captions",
    "video_captions",
    "video_labels",
    "video_choices",
    "video_moments",
    "sugarcrepe",
    "winoground",
    "aro",
    "cola",
    "mteb_retrieval",
    "visdoc",
    "mteb_clustering",
    "nli",
)  # each has the constant SETS


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Sets by their names, in the order of the readers; and why readers could not be imported."""

    sets: Mapping[str, PublicSet]
    broken: Mapping[str, str]  # by module

    def chosen(self, names: Sequence[str]) -> list[PublicSet]:
        """Sets by names or globs (`mteb_*`), in the order of the catalogue; all if there are none.

        Raises:
          ValueError: there is no such set.
        """
        for name in names:
            if not fnmatch.filter(self.sets, name):
                near = difflib.get_close_matches(name, self.sets, n=1)
                hint = f"; {near[0]!r} may be meant" if near else ""
                broken = [
                    f"module {module} is broken ({why})" for module, why in self.broken.items()
                ]
                raise ValueError(
                    f"no set {name!r}{hint}. There are: {', '.join(self.sets)}"
                    + "".join(f". Sets may be missing: {text}" for text in broken)
                )
        return [
            public
            for name, public in self.sets.items()
            if not names or any(fnmatch.fnmatchcase(name, pattern) for pattern in names)
        ]


def load(readers: Sequence[str] = READERS) -> Catalogue:
    """The sets of all readers that can be imported.

    Raises:
      ValueError: two sets have the same name.
    """
    sets: dict[str, PublicSet] = {}
    broken: dict[str, str] = {}
    for reader in readers:
        try:
            module = importlib.import_module(f"{PACKAGE}.{reader}")
            own = tuple(module.SETS)
        except Exception as error:  # whatever is wrong with a module stops its sets alone
            broken[f"{PACKAGE}.{reader}"] = f"{type(error).__name__}: {error}"
            continue
        for public in own:
            if public.name in sets:
                raise ValueError(f"{PACKAGE}.{reader}: there are two sets {public.name!r}")
            sets[public.name] = public
    return Catalogue(sets, broken)
