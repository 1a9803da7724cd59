//! A zram device of our own: the kernel's swap, or a swap device for vswap.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::swap_file::{Priority, swap_on, write_header};
use super::{Change, Context as _, Journal, KernelError, Undo, read, write, zswap};

const CONTROL: &str = "/sys/class/zram-control";

/// A zram device with the header of a swap area, removed when dropped.
pub struct ZramDevice<'j> {
    sysfs: PathBuf,
    node: PathBuf,
    _device: Change<'j>,
}

impl<'j> ZramDevice<'j> {
    /// Adds a device with this compressor.
    ///
    /// # Errors
    /// [`KernelError`] if the kernel has no zram or not this compressor, or refuses.
    pub fn add(journal: &'j Journal, compressor: &str, bytes: u64) -> Result<Self, KernelError> {
        let hot_add = Path::new(CONTROL).join("hot_add");
        if !hot_add.exists() {
            return Err(KernelError::Missing("zram".into()));
        }
        // Reading is what adds the device. A bench killed before the next line leaves it behind,
        // empty: its number cannot be known, and so not recorded, any earlier.
        let text = read(&hot_add)?;
        let id = text.parse().map_err(|_| KernelError::Malformed { path: hot_add, text })?;
        let undo = journal.record(Undo::ZramDevice(id))?;
        let device = sysfs(id);
        write(&device.join("comp_algorithm"), compressor).map_err(|error| {
            let missing = KernelError::Missing(format!("{compressor} for zram"));
            if matches!(&error, KernelError::Io { source, .. } if is_unknown(source)) {
                missing
            } else {
                error
            }
        })?;
        write(&device.join("disksize"), &bytes.to_string())?;
        let node = PathBuf::from(format!("/dev/zram{id}"));
        let file = File::options().write(true).open(&node).context("opening", &node)?;
        write_header(&file, bytes).context("writing", &node)?;
        file.sync_all().context("writing", &node)?;
        Ok(Self { _device: undo, sysfs: device, node })
    }

    /// Where it is.
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Bytes of RAM that the device's data takes; charged to no cgroup.
    ///
    /// # Errors
    /// [`KernelError`] if `mm_stat` cannot be read.
    pub fn pool_bytes(&self) -> Result<u64, KernelError> {
        let path = self.sysfs.join("mm_stat");
        let text = read(&path)?;
        mem_used_total(&text).ok_or(KernelError::Malformed { path, text })
    }
}

/// A zram device in use as the kernel's swap, removed when dropped.
pub struct ZramSwap<'j> {
    _on: Change<'j>,
    device: ZramDevice<'j>,
    // A zswap that is on would stand before the device, and compress everything first.
    _zswap_off: Option<Change<'j>>,
}

impl<'j> ZramSwap<'j> {
    /// Adds a device with this compressor and turns it on as swap.
    ///
    /// # Errors
    /// Those of [`ZramDevice::add`]; or the kernel does not swap to it.
    pub fn on(journal: &'j Journal, compressor: &str, bytes: u64) -> Result<Self, KernelError> {
        let zswap_off = zswap::off(journal)?;
        let device = ZramDevice::add(journal, compressor, bytes)?;
        let on = swap_on(journal, device.node(), Priority::First)?;
        Ok(Self { _on: on, device, _zswap_off: zswap_off })
    }

    /// The device, as /proc/swaps names it.
    pub fn area(&self) -> &Path {
        self.device.node()
    }

    /// As [`ZramDevice::pool_bytes`].
    ///
    /// # Errors
    /// The same.
    pub fn pool_bytes(&self) -> Result<u64, KernelError> {
        self.device.pool_bytes()
    }
}

/// Removes a device; one that is gone is success.
pub fn remove_device(id: u32) -> Result<(), KernelError> {
    let device = sysfs(id);
    if !device.exists() {
        return Ok(());
    }
    write(&device.join("reset"), "1")?;
    write(&Path::new(CONTROL).join("hot_remove"), &id.to_string())
}

fn sysfs(id: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/zram{id}"))
}

fn is_unknown(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT))
}

/// The third field: orig_data_size compr_data_size mem_used_total …
fn mem_used_total(mm_stat: &str) -> Option<u64> {
    mm_stat.split_whitespace().nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_the_third_field_of_mm_stat() {
        let mm_stat = " 24346624  8949166  9797632        0  9797632       52        0        0";
        assert_eq!(mem_used_total(mm_stat), Some(9_797_632));
        assert_eq!(mem_used_total(""), None);
    }
}
