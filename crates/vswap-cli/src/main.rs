//! The `vswap` command.
//!
//! `vswap run` ([`coordinator`]) starts a program with the paging engine loaded into it,
//! `vswap status` and `vswap reclaim` ([`control`]) ask a run that goes on,
//! `vswap core-fix` ([`core_fix`]) completes a core dump,
//! `vswap doctor` ([`doctor`]) says whether that can work on this machine, and `vswap bench`
//! ([`mod@bench`]) compares it with the kernel's own swap.

mod args;
mod bench;
mod cgroup;
mod control;
mod coordinator;
mod core_fix;
mod doctor;
mod elf;
mod inherited;
mod preload;
mod pressure;
mod refusal;
mod size;
mod stats;
mod uffd;

use std::process::ExitCode;

use args::Command;
use inherited::Inherited;
use refusal::{exit_code, say};

fn main() -> ExitCode {
    let inherited = Inherited::record();
    let args = match args::parse() {
        Ok(args) => args,
        // Help and version: they were asked for, and go to stdout.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&args::refusal(&error).into()),
    };
    let result = match args.command {
        Command::Run(args) => coordinator::run(&args, inherited),
        Command::Status(args) => control::commands::status(&args),
        Command::Reclaim(args) => control::commands::reclaim(&args),
        Command::SwapIn(args) => control::commands::swapin(&args),
        Command::SwapOut(args) => control::commands::swapout(&args),
        Command::SwapOn(args) => control::commands::swapon(&args),
        Command::SwapOff(args) => control::commands::swapoff(&args),
        Command::CoreFix(args) => core_fix::run(&args),
        Command::Doctor => doctor::run(),
        Command::Bench(args) => bench::run(args),
    };
    result.unwrap_or_else(|error| fail(&error))
}

fn fail(error: &anyhow::Error) -> ExitCode {
    say(format_args!("{error:#}"));
    ExitCode::from(exit_code(error))
}
