//! Takes swap devices from a run while it goes on.
//!
//! The members move what they have there elsewhere, each for itself; page tables are not concerned. When
//! none has anything left the device is closed. If what is left finds no place, or the client takes
//! the request back, the devices are used as before.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Began, Operation, Step, Subject};
use crate::control::protocol::Reply;
use crate::size::Size;

/// How long nothing may leave a device before the request ends, where something found no other place.
const SILENCE: Duration = Duration::from_secs(5);

/// The same where nothing did not: the machine, or the device, is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// A request under way.
pub struct SwapOff {
    /// Numbers of the devices.
    devices: Vec<usize>,
    /// Whether what resident pages have kept goes too.
    drops_kept: bool,
    /// What was there.
    before: u64,
    /// When last something left, and how much was there still.
    moved: (Instant, u64),
}

/// Which devices are meant.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// All.
    All,
    /// The one that was named so.
    Named(&'a Path),
}

impl SwapOff {
    /// Closes the devices for what is new.
    pub fn begin(which: Which<'_>, subject: &mut Subject<'_>) -> Began {
        let all = subject.members.devices();
        let is_meant = |path: &Path| match which {
            Which::All => true,
            Which::Named(wanted) => path == wanted,
        };
        let mut devices: Vec<usize> = all
            .iter()
            .filter(|device| is_meant(&device.path))
            .map(|device| device.number)
            .collect();
        if let Which::Named(path) = which {
            // Of several temporary files in one place, one.
            devices.truncate(1);
            if devices.is_empty() {
                let names: Vec<_> = all.iter().map(|d| d.path.display().to_string()).collect();
                let what = format!("{} is no swap device of this run", path.display());
                let remedy = if names.is_empty() {
                    "it has none".to_owned()
                } else {
                    format!("it has {}", names.join(", "))
                };
                return Began::Done(Reply::refused(what, remedy));
            }
        }
        for &number in &devices {
            subject.members.devices().set_draining(number, true);
        }
        let drops_kept = matches!(which, Which::All);
        if drops_kept {
            subject.page.devices.drop_kept();
        }
        let before = used(&devices, subject);
        let moved = (Instant::now(), before);
        Began::Operation(Operation::SwapOff(Self { devices, drops_kept, before, moved }))
    }

    /// Looks what is left.
    pub fn advance(&mut self, subject: &mut Subject<'_>) -> Step {
        let left = used(&self.devices, subject);
        // What is stored while the devices are closed was on its way.
        self.before = self.before.max(left);
        if left < self.moved.1 {
            self.moved = (Instant::now(), left);
        }
        let kept = self.drops_kept && !has_dropped_kept(subject);
        if left == 0 && !kept && self.devices.iter().all(|&number| subject.members.has_left(number))
        {
            self.devices.iter().for_each(|&number| subject.members.remove_device(number));
            return Step::Finished(Reply::SwappedOff { bytes: self.before });
        }
        let stuck = self.devices.iter().map(|&number| subject.members.stuck_on(number)).sum();
        let limit = if stuck == 0 { PATIENCE } else { SILENCE };
        if self.moved.0.elapsed() > limit {
            self.open_again(subject);
            return Step::Finished(self.does_not_fit(left, stuck, subject));
        }
        Step::Working(Reply::Progress { done: self.before - left, of: self.before })
    }

    /// Takes it back.
    pub fn cancel(self, subject: &mut Subject<'_>) -> Reply {
        self.open_again(subject);
        Reply::Interrupted { left_bytes: used(&self.devices, subject) }
    }

    fn open_again(&self, subject: &mut Subject<'_>) {
        for &number in &self.devices {
            subject.members.devices().set_draining(number, false);
        }
    }

    fn does_not_fit(&self, left: u64, stuck: u64, subject: &mut Subject<'_>) -> Reply {
        let (moved, left) = (Size::text(self.before - left), Size::text(left));
        if stuck == 0 {
            let what =
                format!("{left} are still there, {moved} were moved, and the pagers do not go on");
            return Reply::refused(what, "it stays in use; try again");
        }
        let totals = subject.members.totals();
        let (charged, ram) = (Size::text(totals.charged()), Size::text(subject.about.config.ram));
        Reply::refused(
            format!(
                "{left} fit nowhere else, {moved} were moved: {charged} of {ram} are in use, and no other \
                 swap device takes more"
            ),
            "it stays in use; give the run another device first (vswap swapon)",
        )
    }
}

/// Whether no member has what its pages kept before it was told to drop that.
fn has_dropped_kept(subject: &Subject<'_>) -> bool {
    let asked = subject.page.devices.kept_dropped();
    subject.members.views().all(|view| view.slot.kept_dropped.load(Ordering::Acquire) == asked)
}

fn used(devices: &[usize], subject: &Subject<'_>) -> u64 {
    devices.iter().map(|&number| subject.members.used_on(number)).sum()
}
