//! The pressure file: how much time a run loses to lack of memory, for supervisors.
//!
//! The first two lines have the format of /proc/pressure/memory. `some` is the share of time in
//! which a thread of the run waited for memory: for a fault to be served, or for room. `full` is
//! the part in which there was no room, so that nothing else of the program would have gone on
//! either. Waits of several threads at once add up, to the whole interval at most. A third line
//! tells how full the memory is:
//!
//!     some avg10=1.20 avg60=0.80 avg300=0.30 total=2120394
//!     full avg10=0.00 avg60=0.00 avg300=0.00 total=0
//!     pool fill=40.10 bytes=26910720 charged=67108864 ram=67108864 swap=0 swap_limit=0
//!
//! `fill` is the share of the budget, in percent, that compressed memory takes; `charged` nears
//! `ram` in any program that is paged, so it is the growth of `fill` that announces the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vswap_core::group::shared::GroupIndex;
use vswap_pager::run_page::{Counter, Gauge, RunPage};

use crate::coordinator::Totals;
use crate::refusal::{Refusal, reason};

/// How often the file is written.
const PERIOD: Duration = Duration::from_secs(1);

/// The file, and what it was last computed from.
pub struct PressureFile {
    path: PathBuf,
    unfinished: PathBuf,
    written: Instant,
    some: Line,
    full: Line,
}

/// One line of pressure: averages in percent, and the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Line {
    averages: [f64; 3],
    total: Duration,
    /// Waiting time when last looked at. It may pass faster than time, `total` may not.
    waited: Duration,
}

const WINDOWS: [f64; 3] = [10.0, 60.0, 300.0];

impl Line {
    /// Accounts for `elapsed`, in which the sum of all waiting rose to `waited`.
    fn update(&mut self, elapsed: Duration, waited: Duration) {
        let lost = waited.saturating_sub(self.waited).min(elapsed);
        let percent = 100.0 * lost.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
        for (average, window) in self.averages.iter_mut().zip(WINDOWS) {
            let weight = 1.0 - (-elapsed.as_secs_f64() / window).exp();
            *average += (percent - *average) * weight;
        }
        self.total += lost;
        self.waited = waited;
    }

    fn text(&self, name: &str) -> String {
        let [ten, sixty, three_hundred] = self.averages;
        let total = self.total.as_micros();
        format!("{name} avg10={ten:.2} avg60={sixty:.2} avg300={three_hundred:.2} total={total}\n")
    }
}

impl PressureFile {
    /// Writes a first version, so that an error can still be told.
    pub fn create(path: &Path) -> Result<Self, Refusal> {
        let refuse = |why: String| {
            let what = format!("--pressure: cannot write {}: {why}", path.display());
            Refusal::usage(what, "name a file in a directory that can be written")
        };
        let name = path.file_name().ok_or_else(|| refuse("not a file name".to_owned()))?;
        let mut unfinished = std::ffi::OsString::from(".");
        unfinished.push(name);
        unfinished.push(format!(".{}", std::process::id()));
        // The program may be started with a relative path, and vswap keeps its directory.
        let file = Self {
            path: path.to_owned(),
            unfinished: path.with_file_name(unfinished),
            written: Instant::now(),
            some: Line::default(),
            full: Line::default(),
        };
        file.replace("pool fill=0.00 bytes=0 charged=0 ram=0 swap=0 swap_limit=0\n")
            .map_err(|error| refuse(reason(error)))?;
        Ok(file)
    }

    /// Brings the file up to date if it is time.
    pub fn update(&mut self, page: &RunPage, totals: &Totals) {
        let elapsed = self.written.elapsed();
        if elapsed < PERIOD {
            return;
        }
        self.written += elapsed;
        let stalled = Duration::from_nanos(totals.counter(Counter::StallNs));
        let waited = stalled + Duration::from_nanos(totals.counter(Counter::FaultNs));
        self.some.update(elapsed, waited);
        self.full.update(elapsed, stalled);
        // A full disk, say, is no reason to disturb the program.
        let _ = self.replace(&pool_line(page, totals));
    }

    /// Replaces the file in one step, so that no reader sees half of it.
    fn replace(&self, pool: &str) -> std::io::Result<()> {
        let text = self.some.text("some") + &self.full.text("full") + pool;
        let result = fs::write(&self.unfinished, text)
            .and_then(|()| fs::rename(&self.unfinished, &self.path));
        if result.is_err() {
            let _ = fs::remove_file(&self.unfinished);
        }
        result
    }
}

fn pool_line(page: &RunPage, totals: &Totals) -> String {
    let ram = page.ram(GroupIndex::ROOT);
    let pool = totals.gauge(Gauge::Pool);
    format!(
        "pool fill={:.2} bytes={pool} charged={} ram={ram} swap={} swap_limit={}\n",
        100.0 * pool as f64 / ram.max(1) as f64,
        totals.charged(),
        totals.gauge(Gauge::SwapUsed),
        page.swap_limit(GroupIndex::ROOT),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn averages_follow_as_in_the_kernel() {
        let mut line = Line::default();
        let second = Duration::from_secs(1);
        for n in 1..=10 {
            line.update(second, second * n / 2);
        }
        // 50 % for as long as the window: 1 - 1/e of it.
        assert_eq!(line.text("some"), "some avg10=31.61 avg60=7.68 avg300=1.64 total=5000000\n");
    }

    #[test]
    fn many_waiting_threads_lose_no_more_than_the_time_there_is() {
        let mut line = Line::default();
        line.update(Duration::from_secs(1), Duration::from_secs(8));
        line.update(Duration::from_secs(1), Duration::from_secs(8));
        assert_eq!(line.total, Duration::from_secs(1));
    }

    #[test]
    fn nothing_unfinished_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pressure");
        PressureFile::create(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("some avg10=0.00"));
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
        assert!(PressureFile::create(&directory.path().join("no/such/place")).is_err());
    }
}
