//! The groups of a run as the coordinator keeps them: the run itself and the runs nested in it, with what those of
//! their processes counted that have ended.
//!
//! A group is known to its processes by a *token*, which is never given out again: a process that the nested
//! run left behind joins the run itself, not another group that has the number now.

use vswap_core::error::GroupError;
use vswap_core::group::shared::{GroupIndex, SharedGroups, SharedLimits};
use vswap_pager::run_page::{Member, RunPage};

use super::totals::Totals;
use crate::control::About;
use crate::refusal::Refusal;

/// A group of the run.
pub struct Group {
    /// Its number in the run page.
    pub index: GroupIndex,
    /// As the user called it.
    pub name: String,
    /// Process ID of its `vswap run`.
    pub pid: u32,
    /// What it runs, once that has started; of the run itself others know.
    pub about: Option<About>,
    /// How many of its processes, and of its descendants', have had a pager.
    pub joined: u64,
    token: u32,
    /// Whether its `vswap run` is there.
    is_held: bool,
    ended: Totals,
}

impl Group {
    /// Whether nobody is left in it: it has its swap devices at most.
    pub fn is_left(&self, page: &RunPage) -> bool {
        !self.is_held && page.members_within(self.index).next().is_none()
    }
}

/// All groups, the run itself first.
pub struct Groups {
    page: &'static RunPage,
    all: Vec<Group>,
    tokens: u32,
}

impl Groups {
    /// With the run itself alone.
    pub fn new(page: &'static RunPage, name: String) -> Self {
        let root = Group {
            index: GroupIndex::ROOT,
            name,
            pid: std::process::id(),
            about: None,
            joined: 0,
            token: 0,
            is_held: true,
            ended: Totals::default(),
        };
        Self { page, all: vec![root], tokens: 0 }
    }

    /// Makes a group for a nested run, and gives its token.
    pub fn add(
        &mut self,
        parent: u32,
        (name, pid): (String, u32),
        limits: SharedLimits,
    ) -> Result<u32, Refusal> {
        let added = self.tree().add(self.index_of(parent), limits);
        let index = added.map_err(|error: GroupError| {
            let what = format!("the run around this one cannot take it as a group: {error}");
            Refusal::usage(what, "start fewer runs in it at a time")
        })?;
        self.tokens += 1;
        let (token, about, joined) = (self.tokens, None, 0);
        let ended = Totals::default();
        self.all.push(Group { index, name, pid, about, joined, token, is_held: true, ended });
        Ok(token)
    }

    /// The number of the group with a token; that of the run itself if it is gone.
    pub fn index_of(&self, token: u32) -> GroupIndex {
        let found = self.all.iter().find(|group| group.token == token);
        found.map_or(GroupIndex::ROOT, |group| group.index)
    }

    /// A nested run has started its program.
    pub fn note_started(&mut self, token: u32, about: About) {
        if let Some(group) = self.all.iter_mut().find(|group| group.token == token) {
            group.about = Some(about);
        }
    }

    /// The `vswap run` of a group is gone. Its processes may be there still.
    pub fn let_go(&mut self, token: u32) {
        self.all.iter_mut().filter(|group| group.token == token).for_each(|group| {
            group.is_held = false;
        });
    }

    /// Removes groups whose `vswap run` is gone, where `is_empty` says that they have neither processes nor
    /// swap devices.
    pub fn sweep(&mut self, is_empty: impl Fn(GroupIndex) -> bool) {
        let tree = &self.page.groups;
        // Children were made after their parents.
        for at in (1..self.all.len()).rev() {
            let group = &self.all[at];
            if !group.is_held && is_empty(group.index) && tree.remove(group.index).is_ok() {
                self.all.remove(at);
            }
        }
    }

    /// A process has joined a group.
    pub fn note_joined(&mut self, index: GroupIndex) {
        self.above(index).for_each(|group| group.joined += 1);
    }

    /// Adds what a member that ended counted.
    pub fn harvest(&mut self, member: &Member) {
        self.above(member.group()).for_each(|group| group.ended.harvest(member));
    }

    /// What all members of a group have counted, the ended ones and those of its descendants included.
    pub fn totals(&mut self, index: GroupIndex) -> Totals {
        let page = self.page;
        let group = self.all.iter_mut().find(|group| group.index == index);
        let sum = |group: &mut Group| group.ended.with_live(page.members_within(index));
        group.map(sum).unwrap_or_default()
    }

    /// The group with an index.
    pub fn get(&self, index: GroupIndex) -> Option<&Group> {
        self.all.iter().find(|group| group.index == index)
    }

    /// Those of a name, or with this process ID as their `vswap run`.
    pub fn called<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Group> {
        self.all.iter().filter(move |group| group.name == name || name.parse() == Ok(group.pid))
    }

    /// All of them, parents before their children.
    pub fn iter(&self) -> impl Iterator<Item = &Group> {
        self.all.iter()
    }

    /// The tree in the run page.
    pub fn tree(&self) -> &'static SharedGroups {
        &self.page.groups
    }

    fn above(&mut self, index: GroupIndex) -> impl Iterator<Item = &mut Group> {
        let tree = &self.page.groups;
        self.all.iter_mut().filter(move |group| tree.is_within(index, group.index))
    }
}

#[cfg(test)]
mod tests {
    use vswap_pager::run_page::Counter;

    use super::*;
    use crate::coordinator::run_memory;

    #[test]
    fn what_ended_in_a_group_counts_for_all_above_it() {
        let (_, page) = run_memory::create().unwrap();
        let mut groups = Groups::new(page, "run".to_owned());
        let limits = SharedLimits::default;
        let outer = groups.add(0, ("outer".to_owned(), 7), limits()).unwrap();
        let inner = groups.add(outer, ("inner".to_owned(), 8), limits()).unwrap();
        let other = groups.add(0, ("other".to_owned(), 9), limits()).unwrap();
        let member = &page.members[0];
        member.set_group(groups.index_of(inner));
        member.count(Counter::Faults, 5);
        groups.note_joined(member.group());
        groups.harvest(member);
        let all = [0, outer, inner, other].map(|token| groups.index_of(token));
        assert_eq!(all.map(|index| groups.totals(index).counter(Counter::Faults)), [5, 5, 5, 0]);
        assert_eq!(groups.iter().map(|group| group.joined).collect::<Vec<_>>(), [1, 1, 1, 0]);
    }

    #[test]
    fn a_group_goes_when_nobody_needs_it_and_its_token_stays_its_own() {
        let (_, page) = run_memory::create().unwrap();
        let mut groups = Groups::new(page, "run".to_owned());
        let limits = SharedLimits::default;
        let outer = groups.add(0, ("outer".to_owned(), 7), limits()).unwrap();
        let inner = groups.add(outer, ("inner".to_owned(), 8), limits()).unwrap();
        let index = groups.index_of(outer);
        groups.let_go(outer);
        groups.sweep(|_| true);
        assert_eq!(groups.index_of(outer), index, "its child is there");
        groups.let_go(inner);
        groups.sweep(|_| false);
        assert_eq!(groups.iter().count(), 3);
        groups.sweep(|_| true);
        assert_eq!(groups.iter().count(), 1);
        let next = groups.add(0, ("next".to_owned(), 9), limits()).unwrap();
        assert_eq!((groups.index_of(next), groups.index_of(outer)), (index, GroupIndex::ROOT));
    }
}
