//! `vswap reclaim`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use signal_hook::consts::SIGINT;

use super::progress::Bar;
use crate::args::ReclaimArgs;
use crate::control::client::{Conversation, PATIENCE, Silence, find, misunderstood};
use crate::control::place::Entry;
use crate::control::protocol::{End, Reclaimed, Reply, Request};
use crate::refusal::{Refusal, say};
use crate::size::Size;

/// Asks a run to evict, and waits for it.
pub fn run(args: &ReclaimArgs) -> anyhow::Result<ExitCode> {
    let run = find(&args.run)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).context("cannot catch ^C")?;
    let started = Instant::now();
    let reclaimed = converse(&run, args, &interrupted).map_err(|silence| silence.of(&run))?;
    let bytes = Size::text(reclaimed.bytes);
    let label = run.label();
    if reclaimed.end == End::Interrupted {
        say(format_args!("reclaimed {bytes} of {label}, then interrupted"));
        signal_hook::low_level::emulate_default_handler(SIGINT)?;
    }
    if reclaimed.end != End::Done {
        return Err(falls_short(&run, &reclaimed).into());
    }
    println!(
        "reclaimed {bytes} of {label} in {:.2} s; it uses {} of {} now",
        started.elapsed().as_secs_f64(),
        Size::text(reclaimed.charged_bytes),
        Size::text(reclaimed.ram_bytes),
    );
    Ok(ExitCode::SUCCESS)
}

fn converse(
    run: &Entry,
    args: &ReclaimArgs,
    interrupted: &AtomicBool,
) -> Result<Reclaimed, Silence> {
    let group = args.group.clone().or_else(|| run.group.clone());
    let request = Request::Reclaim { bytes: args.size.0, group };
    let mut conversation = Conversation::begin(run, &request)?;
    let bar = Bar::new();
    let take_back = |conversation: &Conversation| {
        if interrupted.swap(false, Ordering::Relaxed) {
            conversation.interrupt();
        }
    };
    loop {
        match conversation.next(PATIENCE, take_back)? {
            Reply::Progress { done, of } => bar.show(done, of),
            Reply::Reclaimed(reclaimed) => return Ok(reclaimed),
            _ => return Err(misunderstood()),
        }
    }
}

fn falls_short(run: &Entry, reclaimed: &Reclaimed) -> Refusal {
    let (why, remedy) = match reclaimed.end {
        End::NoPager => (
            "none of its processes has a pager",
            "one gets its pager when it uses half of the run's RAM",
        ),
        End::NoRoom => {
            ("neither its pool nor a swap device takes more", "give it a swap file or more RAM")
        }
        End::NoAnswer => ("its pagers do not answer", "try again"),
        End::Done | End::Interrupted | End::NothingLeft => {
            ("nothing else in RAM can be paged", "'vswap status' shows what it holds")
        }
    };
    let (bytes, asked) = (Size::text(reclaimed.bytes), Size::text(reclaimed.asked_bytes));
    let what = format!("reclaimed {bytes} of the {asked} asked for, from {}: {why}", run.label());
    Refusal::incomplete(what, remedy)
}
