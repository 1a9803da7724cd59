//! The `vswap` command as its users meet it: errors, what it leaves to the program, and how the
//! coordinator treats its members.
//!
//! Members are played by this test program itself, see [`members`].

mod control;
mod errors;
mod fidelity;
mod members;
mod support;
mod terminal;
