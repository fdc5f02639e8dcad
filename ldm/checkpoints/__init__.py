"""FILES: named tensors on disk. This package knows tensors and files, not models.

    reading   any checkpoint → dictionary, without running code      writing   dictionary → file, whole or not at all
    keys      names that differ between checkpoints                  loading   named tensors → module, strictly
    embeddings  the learnt words                                     export    a run → weights alone
    construction  modules built without weights, for a file to bring them
    adapters    low-rank adapters of two layouts, merged
"""
from ldm.checkpoints.loading import LoadReport, load_tensors, load_weights
from ldm.checkpoints.reading import read_checkpoint, read_state_dict
from ldm.checkpoints.writing import atomic_write, save_weights
from ldm.regularization.bank import hash_tensors

__all__ = ["LoadReport", "atomic_write", "hash_tensors", "load_tensors", "load_weights", "read_checkpoint", "read_state_dict", "save_weights"]
