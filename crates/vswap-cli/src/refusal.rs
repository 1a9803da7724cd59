//! Errors that the user can do something about, and the exit code each of them has.
//!
//! Everything the command prints about a failure is one line, `vswap: WHAT; WHAT TO DO`. Errors
//! that are not a [`Refusal`] are failures of vswap itself and end with [`FAILED`].

use std::error::Error;
use std::fmt;
use std::io::Write as _;

/// A request to a run was carried out in part, or not at all.
pub const INCOMPLETE: u8 = 1;
/// Wrong usage, or a file named in an option that cannot be used.
pub const USAGE: u8 = 2;
/// vswap itself failed, as `env` and `timeout` have it.
pub const FAILED: u8 = 125;
/// The program was found but cannot be run here.
pub const CANNOT_RUN: u8 = 126;
/// The program was not found.
pub const NOT_FOUND: u8 = 127;
/// vswap ended the program.
pub const ENDED: u8 = 137;

/// What was refused, what to do about it, and the exit code.
#[derive(Debug)]
pub struct Refusal {
    what: String,
    remedy: String,
    code: u8,
}

impl Refusal {
    /// Wrong usage.
    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), code: USAGE }
    }

    /// A request to a run that could not be carried out, or not in full.
    pub fn incomplete(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), code: INCOMPLETE }
    }

    /// A program that exists but cannot be run under vswap.
    pub fn cannot_run(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), code: CANNOT_RUN }
    }

    /// What was refused, and what to do about it.
    pub fn parts(&self) -> (&str, &str) {
        (&self.what, &self.remedy)
    }

    /// A program that does not exist.
    pub fn not_found(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), code: NOT_FOUND }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl Error for Refusal {}

/// The exit code for an error that reached `main`.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.downcast_ref::<Refusal>().map_or(FAILED, |refusal| refusal.code)
}

/// Text of an operating-system error, without the number that std appends.
pub fn reason(error: impl Into<std::io::Error>) -> String {
    let text = error.into().to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}

/// Prints one line on stderr. The program may have left us none, and that is no reason to fail.
pub fn say(line: impl fmt::Display) {
    let text = format!("vswap: {line}").replace(|c: char| c.is_control(), " ");
    // One write: lines of several processes on one terminal stay whole.
    let _ = std::io::stderr().write_all((text + "\n").as_bytes());
}
