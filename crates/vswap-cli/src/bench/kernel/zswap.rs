//! zswap before a swap file.

use std::path::{Path, PathBuf};

use super::swap_file::SwapFile;
use super::{Change, Journal, KernelError, read, set_parameter};

const PARAMETERS: &str = "/sys/module/zswap/parameters";

/// zswap, on, before a swap file; both are put back when this is dropped.
pub struct ZswapSwap<'j> {
    // In this order: the file's pages come back while zswap still has them, then the parameters
    // are restored in the reverse order of their setting.
    file: SwapFile<'j>,
    _enabled: Change<'j>,
    _pool_limit: Option<Change<'j>>,
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
        let pool_limit = allow_pool(journal, bytes)?;
        let enabled = set_parameter(journal, &parameter("enabled"), "Y")?;
        if read(&parameter("compressor"))? != compressor {
            return Err(missing());
        }
        Ok(Self {
            file: SwapFile::on(journal, dir, bytes)?,
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

/// Raises the pool's limit where it is too low for all of the data: a page that is written back
/// to disk would make this a row about disks.
fn allow_pool(journal: &Journal, bytes: u64) -> Result<Option<Change<'_>>, KernelError> {
    let path = parameter("max_pool_percent");
    let needed = (bytes * 100).div_ceil(meminfo("MemTotal:")?).min(90);
    if super::read_number(&path)? >= needed {
        return Ok(None);
    }
    set_parameter(journal, &path, &needed.to_string()).map(Some)
}

fn parameter(name: &str) -> PathBuf {
    Path::new(PARAMETERS).join(name)
}

fn meminfo(field: &str) -> Result<u64, KernelError> {
    let path = Path::new("/proc/meminfo");
    let text = read(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or(KernelError::Malformed { path: path.into(), text: field.into() })
}
