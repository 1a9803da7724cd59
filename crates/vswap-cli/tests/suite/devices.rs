//! Swap devices: temporary files, files and block devices of `mkswap`, several at once, and what forks
//! leave on them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::job::scratch;
use crate::support::{Job, Outcome, Vswap};

const MIB: u64 = 1 << 20;

/// Where the header ends.
const PAGE: u64 = 4096;

/// A file that `mkswap` has formatted, without blocks but for the header; gone when dropped.
struct Area(PathBuf);

impl Area {
    fn new(mib: u64) -> Self {
        let path = scratch("area");
        File::create(&path).and_then(|file| file.set_len(mib * MIB)).expect("a sparse file");
        let made = Command::new("mkswap").arg(&path).output().expect("mkswap, of util-linux");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(path)
    }

    fn option(&self, priority: i16) -> String {
        format!("{},prio={priority}", self.0.display())
    }

    fn header(&self) -> Vec<u8> {
        let mut header = vec![0; PAGE as usize];
        let file = File::open(&self.0).expect("the area");
        file.read_exact_at(&mut header, 0).expect("its header");
        header
    }

    /// Bytes that were written, the header apart.
    fn written(&self) -> u64 {
        (fs::metadata(&self.0).expect("the area").blocks() * 512).saturating_sub(PAGE)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// D MiB of random words, r 1.
fn random(mib: &str) -> Job {
    Job::c("fill", &[mib, "2", "1", "random"])
}

fn swaps(job: &Job, vswap: &Vswap) -> Outcome {
    let paged = job.compare(vswap);
    paged.stats().assert_used_the_swap_file();
    paged
}

/// D 64 MiB, r 1, B 24 MiB.
#[test]
fn an_area_of_mkswap_is_used_and_its_header_left_alone() {
    let area = Area::new(128);
    let header = area.header();
    for vswap in [Vswap::ram("24M"), Vswap::ram("24M").inline()] {
        swaps(&random("64"), &vswap.device(&area.option(0)));
    }
    assert!(area.written() > 32 * MIB, "{} bytes", area.written());
    assert!(area.header() == header, "the header changed");
}

/// D 96 MiB, r about 13, B 16 MiB: objects of all sizes.
#[test]
fn objects_of_all_sizes_come_back() {
    for vswap in [Vswap::ram("16M"), Vswap::ram("16M").inline()] {
        swaps(&Job::c("remap", &["96", "1", "nosys"]), &vswap.clone().swap("256M"));
        swaps(&Job::c("threads", &["96", "4", "1"]), &vswap.swap("256M").no_encrypt());
    }
}

#[test]
fn devices_of_one_priority_take_turns() {
    let [one, other] = [Area::new(128), Area::new(128)];
    let vswap = Vswap::ram("24M").device(&one.option(3)).device(&other.option(3));
    swaps(&random("64"), &vswap);
    let written = [one.written(), other.written()];
    assert!(written.iter().all(|bytes| *bytes > 12 * MIB), "{written:?}");
}

#[test]
fn a_device_of_lower_priority_waits_until_the_others_are_full() {
    let [low, high] = [Area::new(128), Area::new(24)];
    let vswap = Vswap::ram("24M").device(&low.option(1)).device(&high.option(2));
    swaps(&random("80"), &vswap);
    assert!(high.written() > 20 * MIB, "{} bytes on the preferred one", high.written());
    assert!(low.written() > 8 * MIB, "{} bytes on the other", low.written());

    let [low, high] = [Area::new(128), Area::new(128)];
    let vswap = Vswap::ram("24M").device(&low.option(1)).device(&high.option(2));
    swaps(&random("48"), &vswap);
    assert_eq!(low.written(), 0, "the preferred one had room");
}

/// D 24 MiB in each of two processes, r 1, B 20 MiB. A child's slots and those that it shared come
/// back: 24 children write 144 MiB, and 48 generations of an eighth are written by the parent.
#[test]
fn what_parent_and_children_leave_on_a_device_comes_back() {
    for vswap in [Vswap::ram("20M"), Vswap::ram("20M").inline()] {
        swaps(&Job::c("family", &["24", "24"]), &vswap.swap("112M"));
    }
}

/// Every 512th byte behind the header is changed while the program waits: no page may come back as
/// anything but itself.
#[test]
fn damage_is_found_whatever_it_is() {
    let area = Area::new(64);
    let vswap = Vswap::ram("32M").device(&area.option(0));
    let mut running = Job::c("poison", &[]).stdin("").start_under(&vswap);
    running.wait_for("ready ");
    damage(&area.0);
    let incompressible = (0..512).filter(|page| page % 4 == 3);
    running.send(&incompressible.map(|page| page.to_string()).collect::<Vec<_>>().join(" "));
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
    assert_eq!(outcome.stats().counter("poisoned"), 128);
}

fn damage(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("the area");
    let len = file.metadata().expect("metadata").len();
    let mut all = vec![0; (len - PAGE) as usize];
    file.read_exact_at(&mut all, PAGE).expect("its pages");
    all.iter_mut().step_by(512).for_each(|byte| *byte ^= 0x10);
    file.write_all_at(&all, PAGE).expect("written");
    file.sync_all().expect("on the disk");
}
