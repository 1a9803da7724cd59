//! What the user types: a module for each command.

mod progress;
mod reclaim;
mod status;
mod swap;
mod swapin;

pub use reclaim::run as reclaim;
pub use status::run as status;
pub use swap::{off as swapoff, on as swapon};
pub use swapin::{swap_in as swapin, swap_out as swapout};
