"""States to a sparse, certified implicit model: options -> spec -> groups of rows -> shards -> model.

Read in this order: options (what may be asked), structure (which features a row may use), work (one shard, a
pure function of files), folder (the files of a run), merge (shards to a model), stage (the whole).
"""
