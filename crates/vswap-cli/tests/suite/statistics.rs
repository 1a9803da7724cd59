//! What `--stats` says, against programs that know it.

use crate::support::job::scratch;
use crate::support::{Job, Vswap};

/// Memory of each kind that is never paged, each of another size. What else a small program has of
/// a kind (its libraries, its first stack) is less than 3 MiB.
#[test]
fn memory_that_is_never_paged_is_counted_by_reason() {
    let file = scratch("mapped");
    let job = Job::c("unpageable", &[file.to_str().expect("a path that is text")]);
    let paged = job.compare(&Vswap::ram("64M"));
    for (reason, mib) in [("shared", 8), ("locked", 4), ("file", 12), ("stack", 15)] {
        let peak = paged.stats().peak(&format!("unpageable_{reason}_bytes"));
        let expected = mib << 20..(mib + 3) << 20;
        assert!(expected.contains(&peak), "{reason}: {} KiB, not {mib} MiB", peak >> 10);
    }
}
