//! Has all pages of processes brought back because somebody asks for it, and lets the budget hold again.
//!
//! What a process holds so is beyond its part of the budget, and beyond the budget if need be: that is what is
//! asked for. Only more than the machine or its cgroup has is refused, before anything is done.

use std::time::{Duration, Instant};

use vswap_pager::run_page::{Gauge, Member};

use super::{Began, Operation, Step, Subject};
use crate::cgroup;
use crate::control::protocol::Reply;
use crate::coordinator::{MemberId, MemberView};
use crate::size::Size;

/// How long nothing may come back before the request ends.
const SILENCE: Duration = Duration::from_secs(10);

/// A request under way.
pub struct SwapIn {
    parts: Vec<(MemberId, &'static Member)>,
    /// What was out.
    before: u64,
    /// When last something came back, and how much was out still.
    moved: (Instant, u64),
}

/// Whether a member is meant: all are, or the process of this number.
fn is_meant(process: Option<u32>, view: &MemberView<'_>) -> bool {
    process.is_none_or(|pid| pid == view.pid)
}

impl SwapIn {
    /// Asks the members.
    pub fn begin(process: Option<u32>, subject: &mut Subject<'_>) -> Began {
        let meant = subject.members.views().filter(|view| is_meant(process, view));
        let parts: Vec<_> = meant.map(|view| (view.id, view.slot)).collect();
        let before = out(&parts);
        if let Some(refused) = does_not_fit(before) {
            return Began::Done(refused);
        }
        for (_, slot) in &parts {
            slot.ask_to_hold();
        }
        let moved = (Instant::now(), before);
        Began::Operation(Operation::SwapIn(Self { parts, before, moved }))
    }

    /// Looks what is out still.
    pub fn advance(&mut self, subject: &mut Subject<'_>) -> Step {
        let live: Vec<MemberId> = subject.members.views().map(|view| view.id).collect();
        // The slot of one that has ended may be another's.
        self.parts.retain(|(member, _)| live.contains(member));
        let left = out(&self.parts);
        // What was being evicted when it was asked for counts too.
        self.before = self.before.max(left);
        if self.parts.iter().all(|(_, slot)| slot.is_held()) {
            return Step::Finished(Reply::SwappedIn {
                bytes: self.before,
                processes: self.parts.len(),
                charged_bytes: subject.members.totals().charged(),
                ram_bytes: subject.about.config.ram,
            });
        }
        if left < self.moved.1 {
            self.moved = (Instant::now(), left);
        }
        if self.moved.0.elapsed() > SILENCE {
            self.release();
            let what = format!("{} are still out, and the pagers do not go on", Size::text(left));
            return Step::Finished(Reply::refused(what, "the budget holds as before; try again"));
        }
        Step::Working(Reply::Progress { done: self.before - left, of: self.before })
    }

    /// Takes it back.
    pub fn cancel(mut self, subject: &mut Subject<'_>) -> Reply {
        let live: Vec<MemberId> = subject.members.views().map(|view| view.id).collect();
        self.parts.retain(|(member, _)| live.contains(member));
        self.release();
        Reply::Interrupted { left_bytes: out(&self.parts) }
    }

    fn release(&self) {
        for (_, slot) in &self.parts {
            slot.release();
        }
    }
}

/// Lets the budget hold again for those that are meant.
pub fn release(process: Option<u32>, subject: &mut Subject<'_>) -> Reply {
    let held: Vec<_> = subject
        .members
        .views()
        .filter(|view| is_meant(process, view) && view.slot.hold() != 0)
        .map(|view| view.slot)
        .collect();
    for slot in &held {
        slot.release();
    }
    Reply::SwappedOut { processes: held.len() }
}

fn out(parts: &[(MemberId, &'static Member)]) -> u64 {
    parts.iter().map(|(_, slot)| slot.gauge(Gauge::Swapped)).sum()
}

/// The pool gives back what comes out of it, but that may be little.
fn does_not_fit(bytes: u64) -> Option<Reply> {
    let limit = cgroup::tightest()?;
    let free = limit.bytes.saturating_sub(limit.held);
    (bytes > free).then(|| {
        let (bytes, free) = (Size::text(bytes), Size::text(free));
        let what = format!("{bytes} are swapped out, and {} has {free} free", limit.source);
        Reply::refused(what, "end something else, or name one process")
    })
}
