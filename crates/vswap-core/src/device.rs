//! Swap devices: what is known of them, without any input or output.
//!
//! | module | what is there |
//! |---|---|
//! | [`header`] | what `mkswap` wrote about a swap area |
//! | [`object`] | what an object looks like in its blocks, and how damage to it is found |
//! | [`space`] | the physical slots of one device |
//! | [`set`] | which device the next objects go to |

pub mod header;
pub mod object;
pub mod set;
pub mod space;
