//! zswap before a swap file.

use std::path::{Path, PathBuf};

use super::swap_file::{Priority, SwapFile};
use super::{Change, Journal, KernelError, meminfo, read, set_parameter};

const PARAMETERS: &str = "/sys/module/zswap/parameters";

/// How much zswap may keep in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolLimit {
    /// Whatever it is given, so much at most: a page that is written back to disk would make this
    /// a row about disks.
    All(u64),
    /// The cgroup's limit, which covers the pool; under it the pool is written back.
    Group,
    /// So much at most, if the machine's one limit is fine enough for that.
    Machine(u64),
}

/// zswap, on, before a swap file; both are put back when this is dropped.
pub struct ZswapSwap<'j> {
    // In this order: the file's pages come back while zswap still has them, then the parameters
    // are restored in the reverse order of their setting.
    file: SwapFile<'j>,
    _enabled: Change<'j>,
    _pool_limit: Vec<Change<'j>>,
    _compressor: Change<'j>,
}

impl<'j> ZswapSwap<'j> {
    /// Turns zswap on with this compressor, and a swap file in `dir` behind it.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel has no zswap or not this compressor, or refuses.
    pub fn on(
        journal: &'j Journal,
        compressor: &str,
        pool: PoolLimit,
        dir: &Path,
        bytes: u64,
    ) -> Result<Self, KernelError> {
        if !parameter("enabled").exists() {
            return Err(KernelError::Missing("zswap".into()));
        }
        let missing = || KernelError::Missing(format!("{compressor} for zswap"));
        // Once zswap was in use the kernel refuses an unknown compressor here; before, it takes
        // any name and falls back to the default when zswap is turned on.
        let compressor_set = set_parameter(journal, &parameter("compressor"), compressor)
            .map_err(|error| if error.is_unavailable() { missing() } else { error })?;
        let pool_limit = limit_pool(journal, pool)?;
        let enabled = set_parameter(journal, &parameter("enabled"), "Y")?;
        if read(&parameter("compressor"))? != compressor {
            return Err(missing());
        }
        Ok(Self {
            file: SwapFile::on(journal, dir, bytes, Priority::First)?,
            _enabled: enabled,
            _pool_limit: pool_limit,
            _compressor: compressor_set,
        })
    }

    /// The swap file, as /proc/swaps names it.
    pub fn area(&self) -> &Path {
        self.file.path()
    }
}

/// Bytes of RAM in zswap's pool, of the whole machine; charged to cgroups in version 2 only.
///
/// # Errors
/// [`KernelError`] if /proc/meminfo cannot be read.
pub fn pool_bytes() -> Result<u64, KernelError> {
    meminfo("Zswap:")
}

/// Turns zswap off where it is on.
pub fn off(journal: &Journal) -> Result<Option<Change<'_>>, KernelError> {
    let enabled = parameter("enabled");
    if !enabled.exists() || read(&enabled)? == "N" {
        return Ok(None);
    }
    set_parameter(journal, &enabled, "N").map(Some)
}

fn limit_pool(journal: &Journal, limit: PoolLimit) -> Result<Vec<Change<'_>>, KernelError> {
    let per_cent = parameter("max_pool_percent");
    let current = super::read_number(&per_cent)?;
    let wanted = match limit {
        PoolLimit::All(bytes) => all_of(bytes, meminfo("MemTotal:")?).max(current),
        PoolLimit::Group => 90,
        PoolLimit::Machine(bytes) => {
            at_most(bytes, meminfo("MemTotal:")?).ok_or(KernelError::NoPoolLimit(bytes))?
        }
    };
    let mut changes = Vec::new();
    if wanted != current {
        changes.push(set_parameter(journal, &per_cent, &wanted.to_string())?);
    }
    let shrinker = parameter("shrinker_enabled");
    if limit == PoolLimit::Group && shrinker.exists() {
        changes.push(set_parameter(journal, &shrinker, "Y")?);
    }
    Ok(changes)
}

/// Per cent of the machine's memory that are certainly enough.
fn all_of(bytes: u64, memory: u64) -> u64 {
    (bytes * 100).div_ceil(memory).min(90)
}

/// Per cent of the machine's memory, no more than these bytes and not much less.
fn at_most(bytes: u64, memory: u64) -> Option<u64> {
    let per_cent = bytes * 100 / memory;
    (per_cent * memory / 100 >= bytes / 2).then_some(per_cent)
}

fn parameter(name: &str) -> PathBuf {
    Path::new(PARAMETERS).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_the_machine_cannot_have_is_refused() {
        let memory = 24 << 30;
        assert_eq!(at_most(128 << 20, memory), None);
        assert_eq!(at_most(1 << 30, memory), Some(4));
        assert_eq!(at_most(250 << 20, memory), Some(1));
        assert_eq!(all_of(250 << 20, memory), 2);
        assert_eq!(all_of(1 << 40, memory), 90);
    }
}
