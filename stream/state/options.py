"""How every RocksDB directory is opened: one set of options, one block cache for all partitions of a process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from rocksdict import BlockBasedOptions, Cache, DBRecoveryMode, Options

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RocksOptions:
    """Bounds of what a partition's database may take.

    Attributes:
        block_cache_bytes: blocks that were read, over all databases of the process together.
        write_buffer_bytes: rows of one database that wait in memory to be written as a file; the log holds them, too.
        write_buffers: of them at most, the one that is being written counted in.
        wal_bytes: log of one database after which its oldest rows are written as a file.
        log_files: RocksDB's own text logs kept.
        open_files: files of one database held open; the process's limit is shared with sockets.
    """

    block_cache_bytes: int = 64 * MIB
    write_buffer_bytes: int = 32 * MIB
    write_buffers: int = 2
    wal_bytes: int = 64 * MIB
    log_files: int = 3
    open_files: int = 256

    def build(self) -> Options:
        """As RocksDB takes them. A torn end of the log is of a crash; anything else that is torn is damage."""
        tables = BlockBasedOptions()
        tables.set_block_cache(_shared_cache(self.block_cache_bytes))
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(tables)
        options.set_write_buffer_size(self.write_buffer_bytes)
        options.set_max_write_buffer_number(self.write_buffers)
        options.set_max_total_wal_size(self.wal_bytes)
        options.set_keep_log_file_num(self.log_files)
        options.set_max_open_files(self.open_files)
        options.set_wal_recovery_mode(DBRecoveryMode.tolerate_corrupted_tail_records())
        return options


@cache
def _shared_cache(capacity_bytes: int) -> Cache:
    return Cache(capacity_bytes)
