//! `vswap swapon` and `vswap swapoff`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use signal_hook::consts::SIGINT;

use super::progress::Bar;
use crate::args::{SwapOffArgs, SwapOnArgs, SwapPlace};
use crate::control::client::{Conversation, PATIENCE, Silence, find_outermost, misunderstood};
use crate::control::place::Entry;
use crate::control::protocol::{Reply, Request};
use crate::refusal::{Refusal, reason, say};
use crate::size::Size;

/// Gives a run a device.
pub fn on(args: &SwapOnArgs) -> anyhow::Result<ExitCode> {
    let run = find_outermost(&args.run)?;
    let place = SwapPlace::parse(&args.device)?;
    let request = Request::SwapOn {
        path: absolute(&place.path)?,
        size: place.size.map(|size| size.0),
        priority: place.priority,
        tier: place.tier,
    };
    let asked = Conversation::begin(&run, &request).and_then(|mut c| c.next(PATIENCE, |_| ()));
    match asked.map_err(|silence| silence.of(&run))? {
        Reply::SwappedOn { filename, size_bytes, priority } => {
            let size = Size::text(size_bytes);
            println!("{} swaps to {filename} ({size}, priority {priority}) too", run.label());
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(misunderstood().of(&run).into()),
    }
}

/// Takes one from it, or all.
pub fn off(args: &SwapOffArgs) -> anyhow::Result<ExitCode> {
    let run = find_outermost(&args.run)?;
    let path = args.device.as_deref().map(absolute).transpose()?;
    let shown = path.clone().unwrap_or_else(|| "its swap devices".to_owned());
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).context("cannot catch ^C")?;
    let started = Instant::now();
    let request = Request::SwapOff { path };
    match converse(&run, &request, &interrupted).map_err(|silence| silence.of(&run))? {
        Reply::SwappedOff { bytes } => {
            let seconds = started.elapsed().as_secs_f64();
            let (moved, label) = (Size::text(bytes), run.label());
            println!("{label} does not use {shown} any more; {moved} were moved in {seconds:.2} s");
            Ok(ExitCode::SUCCESS)
        }
        Reply::Interrupted { left_bytes } => {
            let left = Size::text(left_bytes);
            say(format_args!("interrupted; {} goes on with {shown} ({left} there)", run.label()));
            signal_hook::low_level::emulate_default_handler(SIGINT)?;
            Ok(ExitCode::FAILURE)
        }
        _ => Err(misunderstood().of(&run).into()),
    }
}

/// Asks for something that takes its time, and shows how far it is; gives the last line.
pub fn converse(
    run: &Entry,
    request: &Request,
    interrupted: &AtomicBool,
) -> Result<Reply, Silence> {
    let mut conversation = Conversation::begin(run, request)?;
    let bar = Bar::new();
    loop {
        let reply = conversation.next(PATIENCE, |conversation| {
            if interrupted.swap(false, Ordering::Relaxed) {
                conversation.interrupt();
            }
        })?;
        match reply {
            Reply::Progress { done, of } => bar.show(done, of),
            last => return Ok(last),
        }
    }
}

/// The run has another working directory.
fn absolute(path: &Path) -> Result<String, Refusal> {
    let refuse = |what: String| {
        Refusal::usage(format!("{}: {what}", path.display()), "give it as /DIRECTORY/NAME")
    };
    let absolute: PathBuf = std::path::absolute(path).map_err(|error| refuse(reason(error)))?;
    absolute.into_os_string().into_string().map_err(|_| refuse("the name is not UTF-8".to_owned()))
}
