//! What the user types: a module for each command.

mod progress;
mod reclaim;
mod status;
mod swap;

pub use reclaim::run as reclaim;
pub use status::run as status;
pub use swap::{off as swapoff, on as swapon};
