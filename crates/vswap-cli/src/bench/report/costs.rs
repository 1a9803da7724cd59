//! What rows took of the CPUs, as text.

use std::fmt::Write as _;

use super::{Report, Spread};

impl Report {
    /// CPU time of each row, per access and of a run.
    pub(super) fn write_cpu(&self, text: &mut String, threads: usize) {
        let _ = writeln!(
            text,
            "CPU ns, user and system, of the whole tree (not kswapd and other threads of the kernel)\n\
             {:<18} {:>27} {:>27} {:>27} {:>24}",
            "", "per access", "in the kernel", "per page moved", "real, user, sys of a run"
        );
        for cpu in self.cpu.iter().filter(|cpu| cpu.threads == threads) {
            let title = match cpu.page_cluster {
                Some(pages) => format!("{} ({pages})", cpu.row.title()),
                None => cpu.row.title(),
            };
            let spread = |Spread { median, min, max, .. }: &Spread| {
                format!("{median:.0} ({min:.0}–{max:.0})")
            };
            let moved = cpu.per_moved_page.as_ref().map_or("–".into(), spread);
            let (all, system) = (spread(&cpu.per_access), spread(&cpu.system_per_access));
            let [real, user, sys] = cpu.seconds.each_ref().map(|spread| spread.median);
            let run = format!("{real:.1} {user:.1} {sys:.1} s");
            let _ = writeln!(text, "{title:<22} {all:>23} {system:>27} {moved:>27} {run:>24}");
        }
    }
}
