"""The level database: of each site its least-squares problem and the order in which its units go, on disk.

One elimination gives all levels, which are prefixes of its order, and a level's reader is one solution away; so a file
a site, F² + F·D numbers, says all there is to say, and only what is asked for is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..budget.levels import Levels
from ..checkpoints import sealed
from ..checkpoints.writing import written_aside
from ..errors import UserError
from ..foreign import reading, text_of
from ..sites.address import Address
from ..sites.site import Site
from .elimination import Elimination, LeastSquares

#: of how many sites the problems are kept in memory
_AT_HAND = 4
_ABOUT, _SUFFIX = "about.json", ".safetensors"


class Database(Mapping[Address, LeastSquares]):
    """The problems by address. folder: where the files are, `neurons.0.safetensors`, …

    about: what they depend on; a folder that holds those of something else is refused (UserError), and what is there of
    the same is not computed again. A file that is not, to the bit, what was written is as good as none.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]):
        self.folder, told = folder, json.dumps(about, sort_keys=True)
        note = folder / _ABOUT
        with reading(f"can't read {note}"):
            folder.mkdir(parents=True, exist_ok=True)
            same = not note.exists() or text_of(note) == told
        if not same:
            raise UserError(f"{folder} holds levels of another model, text or setting; name another --levels folder")
        with written_aside(note, folder=False) as aside:
            aside.write_text(told, encoding="utf-8")
        self._read = lru_cache(_AT_HAND)(self._load)

    @staticmethod
    def bytes_of(sites: Sequence[Site]) -> int:
        """What the files of these sites take."""
        return sum(4 * (site.width**2 + site.reader().numel()) for site in sites)

    def put(self, site: Site, problem: LeastSquares, found: Elimination) -> None:
        about = torch.tensor([problem.pinned, problem.size, problem.drifted])
        stated = {"gram": problem.gram_FF.float(), "cross": problem.cross_FD.float(), "about": about}
        whole = {**stated, "gone": found.gone, "cost": found.cost}
        sealed.write(self._file(site.address), whole)
        self._read.cache_clear()

    def __getitem__(self, address: Address) -> LeastSquares:
        held = self._read(address)
        pinned, size, drifted = held["about"].tolist()
        return LeastSquares(held["gram"].double(), held["cross"].double(), pinned, size, bool(drifted))

    def __contains__(self, address: object) -> bool:
        if not (isinstance(address, Address) and self._file(address).exists()):
            return False
        try:
            self._read(address)
        except UserError:
            return False
        return True

    def __iter__(self) -> Iterator[Address]:
        return (Address.parse(file.stem) for file in sorted(self.folder.glob(f"*{_SUFFIX}")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def levels(self, address: Address, counts: tuple[int, ...]) -> Levels:
        """counts: units left at each level, falling."""
        held = self._read(address)
        return Levels.of(address, held["gone"], held["cost"], counts)

    def reader(self, levels: Levels, count: int) -> tuple[Tensor, Tensor | None]:
        """(F, D) and (D,), float32, for `Site.set_reader`: the refitted reader where `count` units are left, zero where
        the others were, and the bias."""
        return self[levels.address].masked(levels.kept(count))

    def _load(self, address: Address) -> dict[str, Tensor]:
        return dict(sealed.read(self._file(address), "remove it, and it is made again"))

    def _file(self, address: Address) -> Path:
        return self.folder / f"{address}{_SUFFIX}"
