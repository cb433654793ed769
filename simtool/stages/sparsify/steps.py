"""What is still to be done in a run folder, and the order of it: Gram tiles, matrices, the heuristic's choice, rows.

Every engine goes through the same steps. Tiles, the choice and rows are tasks; what joins tiles is done by whoever
coordinates.
"""

from __future__ import annotations

import os

from simtool.stages.sparsify import budget, elimination, sequential
from simtool.stages.sparsify.folder import RunFolder
from simtool.stages.sparsify.paths import path_file
from simtool.stages.sparsify.plan import Plan
from simtool.stages.sparsify.work import assemble_gram, gram_array


class Steps:
    """The unfinished work of ``folder``, looked up when made: shards that are missing or damaged count as undone.

    Attributes
    ----------
    rows : the shards of rows to be solved, those that take longest first, so that the workers end together
    depth : the smallest depth of these (see :mod:`simtool.stages.sparsify.sequential`); all have 0 without --sequential
    refresh : whether the groups of that depth still lack the states that they are fitted on
    ready : which of ``rows`` can be solved before anything is refreshed, or after it where that is what comes first
    grams : the Gram matrices these need that are not assembled
    tiles : the tiles of these to be computed
    choose : whether ``--eliminate heuristic`` has to choose its features first, or a budget the supports of the rows
    paths : the shards whose rows' paths a budget needs for that
    """

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        # On network file systems a name that was looked up before it was there may stay unknown until its folder is listed.
        for place in (folder.rows, folder.work):
            if place.is_dir():
                os.listdir(place)
        self.choose = not (elimination.is_chosen(folder, plan) and budget.is_chosen(folder, plan))
        self.choose |= self._lacks_paths()
        self.paths = [
            index
            for index in range(len(plan.shards))
            if self.choose and plan.budget is not None and not folder.holds(path_file(folder, index))
        ]
        undone = [
            index for index in range(len(plan.shards)) if self.choose or not folder.holds(folder.shard(index))
        ]
        self.rows = sorted(undone, key=lambda index: (-_work(plan, index), index))
        self.depth = min((self.depth_of(index) for index in self.rows), default=0)
        self.refresh = not sequential.is_ready(folder, plan, self.depth)
        self.ready = [index for index in self.rows if self.depth_of(index) == self.depth]
        needed = {plan.groups[plan.shards[index].group].gram for index in self.rows} & set(plan.grams)
        self.grams = [name for name in sorted(needed) if not folder.is_sealed(gram_array(plan, name))]
        self.tiles = [
            index
            for index, tile in enumerate(plan.tiles)
            if tile[0] in self.grams and not folder.holds(folder.tile(index))
        ]

    def _lacks_paths(self) -> bool:
        """Whether rows behind sparse ones are missing from a run whose paths are gone, which settle their sizes: it was finished once."""
        shards = range(len(self.plan.shards))
        missing = any(self.depth_of(i) > 0 and not self.folder.holds(self.folder.shard(i)) for i in shards)
        return missing and not all(self.folder.holds(path_file(self.folder, i)) for i in shards)

    def depth_of(self, index: int) -> int:
        """The depth of shard ``index``."""
        return self.plan.depths[self.plan.shards[index].group]

    def assemble(self) -> None:
        """Join the tiles, all of which must be there, to the matrices that the rows need."""
        for name in self.grams:
            assemble_gram(self.folder, name)


def _work(plan: Plan, index: int) -> float:
    """Multiply-adds of shard ``index`` for each sample: products with its rows, and the elimination of smooth features."""
    shard = plan.shards[index]
    group = plan.groups[shard.group]
    smooth = int(plan.smooth(group).sum())
    return float((shard.stop - shard.start) * group.features.size + smooth * smooth)
