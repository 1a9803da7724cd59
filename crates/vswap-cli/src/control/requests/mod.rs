//! What a run does for its clients: a module for each request.

mod groups;
mod reclaim;
mod status;
mod swapin;
mod swapoff;
mod swapon;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vswap_pager::config::Config;
use vswap_pager::run_page::RunPage;

use self::reclaim::Reclaim;
use self::swapin::SwapIn;
use self::swapoff::{SwapOff, Which};
use super::protocol::{Reply, Request};
use crate::args::SwapPlace;
use crate::coordinator::Members;
use crate::size::Size;

/// What is known of a run from its start.
pub struct About {
    pub name: Option<String>,
    pub words: Vec<OsString>,
    pub started: Instant,
    /// The process that was started.
    pub program: u32,
    pub config: Config,
}

/// The run that a request is about.
pub struct Subject<'a> {
    pub about: &'a About,
    pub page: &'static RunPage,
    pub members: &'a mut Members,
}

/// A request that takes its time. It holds nothing back: all the work is done elsewhere.
pub enum Operation {
    Reclaim(Reclaim),
    SwapIn(SwapIn),
    SwapOff(SwapOff),
}

/// How a request began.
pub enum Began {
    /// It is done already.
    Done(Reply),
    /// It goes on.
    Operation(Operation),
}

/// How an operation goes on.
pub enum Step {
    /// So far it is.
    Working(Reply),
    /// It has ended, with this last line.
    Finished(Reply),
}

/// Carries a request out, or begins to. `busy` says that an operation is under way.
pub fn begin(request: &Request, subject: &mut Subject<'_>, busy: bool) -> Began {
    match request {
        Request::Status { group } => Began::Done(status::answer(group.as_deref(), subject)),
        _ if busy => {
            let what = "this run is busy with another client's request";
            Began::Done(Reply::refused(what, "try again when that is done"))
        }
        Request::Reclaim { bytes, group } => Reclaim::begin(*bytes, group.as_deref(), subject),
        Request::SwapIn { process } => SwapIn::begin(*process, subject),
        Request::SwapOut { process } => Began::Done(swapin::release(*process, subject)),
        Request::SwapOn { path, size, priority, tier } => {
            let (path, size) = (PathBuf::from(path), size.map(Size));
            let place = SwapPlace { path, size, priority: *priority, tier: tier.clone() };
            Began::Done(swapon::answer(&place, subject))
        }
        Request::SwapOff { path } => {
            let which = path.as_deref().map_or(Which::All, |path| Which::Named(Path::new(path)));
            SwapOff::begin(which, subject)
        }
    }
}

impl Operation {
    /// Looks how far it is, and does what comes next.
    pub fn advance(&mut self, subject: &mut Subject<'_>) -> Step {
        match self {
            Self::Reclaim(reclaim) => reclaim.advance(subject),
            Self::SwapIn(swapin) => swapin.advance(subject),
            Self::SwapOff(swapoff) => swapoff.advance(subject),
        }
    }

    /// Ends it early.
    pub fn cancel(self, subject: &mut Subject<'_>) -> Reply {
        match self {
            Self::Reclaim(reclaim) => reclaim.cancel(subject),
            Self::SwapIn(swapin) => swapin.cancel(subject),
            Self::SwapOff(swapoff) => swapoff.cancel(subject),
        }
    }
}
