//! PAGEMAP_SCAN: which pages of a range are there.

use linux_raw_sys::general as k;

use super::{Errno, result};
use crate::syscall;

/// `_IOWR('f', 16, struct pm_scan_arg)`, include/uapi/linux/fs.h.
const PAGEMAP_SCAN: u32 = 0xc060_6610;
const _: () = assert!(size_of::<k::pm_scan_arg>() == 0x60);

/// Regions reported by one call.
const BATCH: usize = 64;

/// Calls `found(start, end)` for each run of pages in `[start, end)` that is present or swapped
/// out by the kernel, in ascending order.
///
/// # Errors
/// As ioctl(PAGEMAP_SCAN), on `/proc/self/pagemap` opened as `pagemap`.
pub fn for_each_present(
    pagemap: i32,
    start: usize,
    end: usize,
    mut found: impl FnMut(usize, usize),
) -> Result<(), Errno> {
    let mut regions = [k::page_region { start: 0, end: 0, categories: 0 }; BATCH];
    let mut from = start;
    while from < end {
        let mut scan = k::pm_scan_arg {
            size: size_of::<k::pm_scan_arg>() as u64,
            flags: 0,
            start: from as u64,
            end: end as u64,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: BATCH as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: u64::from(k::PAGE_IS_PRESENT | k::PAGE_IS_SWAPPED),
            return_mask: u64::from(k::PAGE_IS_PRESENT),
        };
        // SAFETY: the argument and the vector live across the call.
        let count =
            result(unsafe { syscall!(k::__NR_ioctl, pagemap, PAGEMAP_SCAN, &raw mut scan) })?;
        for region in &regions[..count] {
            found(region.start as usize, region.end as usize);
        }
        if scan.walk_end as usize <= from {
            break;
        }
        from = scan.walk_end as usize;
    }
    Ok(())
}
