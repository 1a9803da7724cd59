//! What the user types: a module for each command.

mod progress;
mod reclaim;
mod status;

pub use reclaim::run as reclaim;
pub use status::run as status;
