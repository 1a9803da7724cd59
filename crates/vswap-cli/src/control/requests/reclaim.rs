//! Evicts pages of the members because somebody asks for it.
//!
//! Each member gets a part of the request, in proportion to what it has resident, through the run
//! page. When all have done theirs or given up, what is missing is asked of those that had more;
//! until it is there, or none has any.

use std::time::{Duration, Instant};

use vswap_core::group::shared::GroupIndex;
use vswap_pager::run_page::{Counter, Gauge, Member, ReclaimEnd};

use super::{Began, Operation, Step, Subject};
use crate::control::protocol::{End, Reclaimed, Reply};
use crate::coordinator::MemberId;

/// A page, in bytes.
const PAGE_SIZE: u64 = 4096;

/// How long all pagers may do nothing before the request ends. They see it within 10 ms, and every
/// batch after that takes less than one.
const SILENCE: Duration = Duration::from_secs(10);

/// A request under way.
pub struct Reclaim {
    asked: u64,
    /// Groups that are asked, with all below them.
    groups: Vec<GroupIndex>,
    parts: Vec<Part>,
    /// When last something was evicted, and how much was by then.
    moved: (Instant, u64),
    /// Why it is over. It is told at the next look: members publish what they use every 10 ms.
    end: Option<End>,
}

/// What one member does.
struct Part {
    member: MemberId,
    slot: &'static Member,
    /// Pages that it had reclaimed for others before.
    before: u64,
    done: u64,
    end: Option<End>,
}

impl Reclaim {
    /// Asks the members, of the groups of a name if one is given.
    pub fn begin(asked: u64, group: Option<&str>, subject: &mut Subject<'_>) -> Began {
        let all = subject.members.groups();
        let groups: Vec<GroupIndex> = match group {
            Some(name) => all.called(name).map(|group| group.index).collect(),
            None => vec![GroupIndex::ROOT],
        };
        if let (true, Some(group)) = (groups.is_empty(), group) {
            let names: Vec<&str> = all.iter().map(|group| group.name.as_str()).collect();
            let what = format!("this run has no group '{group}'");
            return Began::Done(Reply::refused(what, format!("it has {}", names.join(", "))));
        }
        let (parts, moved) = (Vec::new(), (Instant::now(), 0));
        let mut reclaim = Self { asked, groups, parts, moved, end: None };
        reclaim.distribute(subject);
        Began::Operation(Operation::Reclaim(reclaim))
    }

    /// Looks what the members have done.
    pub fn advance(&mut self, subject: &mut Subject<'_>) -> Step {
        let live: Vec<MemberId> = subject.members.views().map(|view| view.id).collect();
        self.parts.iter_mut().for_each(|part| part.look(&live));
        let done = self.done();
        if done > self.moved.1 {
            self.moved = (Instant::now(), done);
        }
        if let Some(end) = self.end {
            return Step::Finished(self.finish(subject, end));
        }
        let at_work = self.parts.iter().any(Part::is_at_work);
        self.end = match () {
            () if at_work && self.moved.0.elapsed() > SILENCE => Some(End::NoAnswer),
            () if at_work => None,
            () if done >= self.asked => Some(End::Done),
            () if self.distribute(subject) => None,
            () => Some(self.why_not_more()),
        };
        Step::Working(Reply::Progress { done, of: self.asked })
    }

    /// Takes it back.
    pub fn cancel(mut self, subject: &mut Subject<'_>) -> Reply {
        let live: Vec<MemberId> = subject.members.views().map(|view| view.id).collect();
        self.parts.iter_mut().for_each(|part| part.look(&live));
        self.finish(subject, End::Interrupted)
    }

    fn done(&self) -> u64 {
        self.parts.iter().map(|part| part.done).sum()
    }

    /// Asks those that have not given up for what is missing; `false` if there are none.
    fn distribute(&mut self, subject: &mut Subject<'_>) -> bool {
        let tree = &subject.page.groups;
        for view in subject.members.views() {
            let is_meant = |&group: &GroupIndex| tree.is_within(view.slot.group(), group);
            if !self.groups.iter().any(is_meant) {
                continue;
            }
            if !self.parts.iter().any(|part| part.member == view.id) {
                self.parts.push(Part::new(view.id, view.slot));
            }
        }
        let missing = self.asked.saturating_sub(self.done());
        let able = || self.parts.iter().filter(|part| part.end.is_none());
        let whole: u64 = able().map(Part::weight).sum();
        for part in able() {
            let share = u128::from(missing) * u128::from(part.weight()) / u128::from(whole);
            part.slot.ask_to_reclaim((share as u64).next_multiple_of(PAGE_SIZE).max(PAGE_SIZE));
        }
        able().next().is_some()
    }

    fn why_not_more(&self) -> End {
        let ends = || self.parts.iter().filter_map(|part| part.end);
        match () {
            () if self.parts.is_empty() => End::NoPager,
            () if ends().any(|end| end == End::NoRoom) => End::NoRoom,
            () => End::NothingLeft,
        }
    }

    fn finish(&self, subject: &mut Subject<'_>, end: End) -> Reply {
        for part in self.parts.iter().filter(|part| part.is_at_work()) {
            part.slot.ask_to_reclaim(0);
        }
        Reply::Reclaimed(Reclaimed {
            bytes: self.done(),
            asked_bytes: self.asked,
            charged_bytes: subject.members.totals().charged(),
            ram_bytes: subject.about.config.ram,
            end,
        })
    }
}

impl Part {
    fn new(member: MemberId, slot: &'static Member) -> Self {
        let before = slot.counter(Counter::ReclaimedProactively);
        Self { member, slot, before, done: 0, end: None }
    }

    /// What it has resident. What a pager does not manage yet it takes over when it is asked.
    fn weight(&self) -> u64 {
        (self.slot.gauge(Gauge::Resident) + self.slot.gauge(Gauge::Unmanaged)).max(PAGE_SIZE)
    }

    /// Takes note of what it has done. The slot of one that has ended may be another's.
    fn look(&mut self, live: &[MemberId]) {
        if self.end.is_some() {
            return;
        }
        if !live.contains(&self.member) {
            self.end = Some(End::NothingLeft);
            return;
        }
        let end = self.slot.reclaim_end();
        let pages = self.slot.counter(Counter::ReclaimedProactively) - self.before;
        self.done = pages * PAGE_SIZE;
        self.end = match end {
            Some(ReclaimEnd::NothingLeft) => Some(End::NothingLeft),
            Some(ReclaimEnd::NoRoom) => Some(End::NoRoom),
            Some(ReclaimEnd::Done) | None => None,
        };
    }

    fn is_at_work(&self) -> bool {
        self.end.is_none() && self.slot.reclaim_end().is_none()
    }
}
