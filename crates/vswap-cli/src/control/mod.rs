//! The control socket of a run, and the commands that use it.
//!
//! Each `vswap run` listens on a Unix stream socket in a directory of its user's own ([`place`]),
//! named after its process ID; a run with a name has a symbolic link of that name to it. A client
//! ([`client`]) connects, writes one [`protocol::Request`] as a line of JSON, and reads lines of JSON
//! until the run closes: for a long operation [`protocol::Reply::Progress`], and at the end one other
//! reply. A client that closes its writing half takes a long operation back; what is done stays
//! done.
//!
//! The coordinator has one thread, on which the life of a program depends, so nothing here waits for
//! a client ([`server`]): all sockets are nonblocking, there are few, each holds one short request,
//! and who does not read or write for a while is dropped. A long operation runs in the pagers; the
//! coordinator only looks after it, one at a time.
//!
//! A new request is a variant of [`protocol::Request`] with a module in [`requests`] for the run's
//! side, and one in [`commands`] for the user's; a long one also a variant of
//! [`requests::Operation`].

mod client;
pub mod commands;
mod connection;
mod place;
mod protocol;
mod requests;
mod server;

pub use place::{PublishError, check_name, open_own_directory, publish};
pub use requests::{About, Subject};
pub use server::Control;
