//! `vswap swapin` and `vswap swapout`.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Context as _;
use signal_hook::consts::SIGINT;

use super::swap::converse;
use crate::args::MembersArgs;
use crate::control::client::{Conversation, PATIENCE, find, misunderstood};
use crate::control::place::Entry;
use crate::control::protocol::{Reply, Request};
use crate::refusal::say;
use crate::size::Size;

/// Has all pages brought back.
pub fn swap_in(args: &MembersArgs) -> anyhow::Result<ExitCode> {
    let run = find(&args.run)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&interrupted)).context("cannot catch ^C")?;
    let started = Instant::now();
    let request = Request::SwapIn { process: process(&run, &args.run) };
    match converse(&run, &request, &interrupted).map_err(|silence| silence.of(&run))? {
        Reply::SwappedIn { bytes, processes, charged_bytes, ram_bytes } => {
            println!(
                "brought {} back in {}, in {:.2} s; {} uses {} of {} now, until 'vswap swapout {}'",
                Size::text(bytes),
                number_of(processes),
                started.elapsed().as_secs_f64(),
                run.label(),
                Size::text(charged_bytes),
                Size::text(ram_bytes),
                args.run,
            );
            Ok(ExitCode::SUCCESS)
        }
        Reply::Interrupted { left_bytes } => {
            let left = Size::text(left_bytes);
            say(format_args!("interrupted; {left} are still out, and the budget holds as before"));
            signal_hook::low_level::emulate_default_handler(SIGINT)?;
            Ok(ExitCode::FAILURE)
        }
        _ => Err(misunderstood().of(&run).into()),
    }
}

/// Lets the budget hold again.
pub fn swap_out(args: &MembersArgs) -> anyhow::Result<ExitCode> {
    let run = find(&args.run)?;
    let request = Request::SwapOut { process: process(&run, &args.run) };
    let asked = Conversation::begin(&run, &request).and_then(|mut c| c.next(PATIENCE, |_| ()));
    match asked.map_err(|silence| silence.of(&run))? {
        Reply::SwappedOut { processes } => {
            println!("the budget of {} holds again for {}", run.label(), number_of(processes));
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(misunderstood().of(&run).into()),
    }
}

/// The process that is meant if the run was found by it.
fn process(run: &Entry, argument: &str) -> Option<u32> {
    let by_name = run.name.as_deref() == Some(argument);
    argument.parse().ok().filter(|&pid| !by_name && pid != run.pid)
}

fn number_of(processes: usize) -> String {
    match processes {
        1 => "1 process".to_owned(),
        many => format!("{many} processes"),
    }
}
