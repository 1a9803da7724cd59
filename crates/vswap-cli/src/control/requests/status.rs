//! The account of a run that goes on, with the key names of `--stats`, its swap devices and its
//! members.

use std::sync::atomic::Ordering;

use serde::Serialize;
use vswap_pager::run_devices::RunDevice;
use vswap_pager::run_page::Gauge;

use super::Subject;
use crate::control::protocol::Reply;
use crate::coordinator::MemberView;
use crate::stats::Account;

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
}

/// A process with a pager.
#[derive(Serialize)]
struct MemberLine {
    pid: u32,
    name: String,
    resident_bytes: u64,
    swapped_bytes: u64,
    charged_bytes: u64,
    /// What it may use of the budget.
    share_bytes: u64,
}

/// Says how the run is.
pub fn answer(subject: &mut Subject<'_>) -> Reply {
    let about = subject.about;
    let totals = subject.members.totals();
    let document = Document {
        version: 1,
        name: about.name.as_deref(),
        pid: std::process::id(),
        program_pid: about.program,
        command: command(subject),
        account: Account::of(about, subject.page, &totals, subject.members.joined()),
        charged_bytes: totals.charged(),
        swaps: swaps(subject),
        members: subject.members.views().map(|view| member(&view)).collect(),
    };
    Reply::Status(serde_json::to_value(document).expect("strings and numbers only"))
}

fn command(subject: &Subject<'_>) -> String {
    let words: Vec<_> = subject.about.words.iter().map(|word| word.to_string_lossy()).collect();
    words.join(" ").chars().take(COMMAND_MAX).collect()
}

fn swaps(subject: &Subject<'_>) -> Vec<Swap> {
    let devices = subject.members.devices().iter();
    let swaps = devices.map(|device| Swap {
        filename: device.path.display().to_string(),
        r#type: device.kind.name(),
        size_bytes: device.limit(),
        used_bytes: subject.members.used_on(device.number),
        leased_bytes: subject.page.devices.get(device.number).map_or(0, RunDevice::leased),
        priority: device.priority(),
    });
    swaps.collect()
}

fn member(view: &MemberView<'_>) -> MemberLine {
    let slot = view.slot;
    MemberLine {
        pid: view.pid,
        name: view.program.to_owned(),
        resident_bytes: slot.gauge(Gauge::Resident),
        swapped_bytes: slot.gauge(Gauge::Swapped),
        charged_bytes: slot.charged.load(Ordering::Relaxed),
        share_bytes: slot.claim.load(Ordering::Relaxed),
    }
}
