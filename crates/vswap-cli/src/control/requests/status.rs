//! The account of a run that goes on, with the key names of `--stats`, its swap devices and its
//! members.

use std::sync::atomic::Ordering;

use serde::Serialize;
use vswap_core::group::shared::GroupIndex;
use vswap_pager::run_devices::RunDevice;
use vswap_pager::run_page::Gauge;

use super::groups::GroupLine;
use super::{Subject, groups};
use crate::control::About;
use crate::control::protocol::Reply;
use crate::coordinator::MemberView;
use crate::stats::{Account, SwapSpace};

/// Words of a command line that are shown, in characters.
const COMMAND_MAX: usize = 1024;

/// `version` is raised when a field changes its meaning or goes away.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    name: Option<&'a str>,
    pid: u32,
    program_pid: u32,
    command: String,
    #[serde(flatten)]
    account: Account<'a>,
    charged_bytes: u64,
    swaps: Vec<Swap>,
    members: Vec<MemberLine>,
    groups: Vec<GroupLine>,
}

/// A swap device, as in /proc/swaps.
#[derive(Serialize)]
struct Swap {
    filename: String,
    r#type: &'static str,
    size_bytes: u64,
    used_bytes: u64,
    /// What processes hold of it to put that into.
    leased_bytes: u64,
    priority: i16,
    /// Name of its tier, if it has one.
    tier: Option<String>,
    /// Whether the run may store there.
    allowed: bool,
    /// The name of the group that brought it.
    group: Option<String>,
}

/// A process with a pager.
#[derive(Serialize)]
struct MemberLine {
    pid: u32,
    name: String,
    /// The name of its group.
    group: String,
    resident_bytes: u64,
    swapped_bytes: u64,
    charged_bytes: u64,
    /// What it may use of the budget.
    share_bytes: u64,
}

/// Says how the run is, or a run in it.
pub fn answer(group: Option<&str>, subject: &mut Subject<'_>) -> Reply {
    let Some(index) = groups::find(group, subject) else {
        return Reply::refused("that run is in it no more", "'vswap status' lists them");
    };
    let totals = subject.members.totals_of(index);
    let lines = groups::lines(index, subject);
    let group = subject.members.groups().get(index);
    let about = match index {
        GroupIndex::ROOT => Some(subject.about),
        _ => group.and_then(|group| group.about.as_ref()),
    };
    let (Some(group), Some(about)) = (group, about) else {
        return Reply::refused("that run has not started its program yet", "try again");
    };
    let tree = &subject.page.groups;
    let members = subject.members.views();
    let members = members.filter(|view| tree.is_within(view.slot.group(), index));
    let document = Document {
        version: 1,
        name: about.name.as_deref(),
        pid: group.pid,
        program_pid: about.program,
        command: command(about),
        account: Account::of(about, SwapSpace::of(subject.page, index), &totals, group.joined),
        charged_bytes: totals.charged(),
        swaps: swaps(index, subject),
        members: members.map(|view| member(subject, &view)).collect(),
        groups: lines,
    };
    Reply::Status(serde_json::to_value(document).expect("strings and numbers only"))
}

pub fn command(about: &About) -> String {
    let words: Vec<_> = about.words.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ").chars().take(COMMAND_MAX).collect()
}

/// Those of the whole run, or those that a run in it writes to.
fn swaps(group: GroupIndex, subject: &Subject<'_>) -> Vec<Swap> {
    let page = subject.page;
    let opened = subject.members.devices();
    let name_of = |group| subject.members.groups().get(group).map(|group| group.name.clone());
    let devices = opened.iter().filter(|device| {
        let device = page.devices.get(device.number);
        group == GroupIndex::ROOT || device.is_some_and(|device| page.uses(group, device))
    });
    let swaps = devices.map(|device| Swap {
        filename: device.path.display().to_string(),
        r#type: device.kind.name(),
        size_bytes: device.limit(),
        used_bytes: subject.members.used_on(device.number),
        leased_bytes: subject.page.devices.get(device.number).map_or(0, RunDevice::leased),
        priority: device.priority(),
        tier: opened.tier_of(device).map(str::to_owned),
        allowed: !opened.is_closed(group, device),
        group: name_of(opened.group_of(device)),
    });
    swaps.collect()
}

fn member(subject: &Subject<'_>, view: &MemberView<'_>) -> MemberLine {
    let slot = view.slot;
    let mut groups = subject.members.groups().iter();
    let group = groups.find(|group| group.index == slot.group());
    MemberLine {
        pid: view.pid,
        name: view.program.to_owned(),
        group: group.map(|group| group.name.clone()).unwrap_or_default(),
        resident_bytes: slot.gauge(Gauge::Resident),
        swapped_bytes: slot.gauge(Gauge::Swapped),
        charged_bytes: slot.charged.load(Ordering::Relaxed),
        share_bytes: slot.claim.load(Ordering::Relaxed),
    }
}
