//! Pages a program's memory: userfaultfd, page table, reclaim, tracking of mappings, the pager
//! process.
//!
//! Everything here is *fault-side* code, except where a module says otherwise: `no_std`, raw system
//! calls, memory from its own arena, no thread-local storage, and no wait for anything but the
//! kernel.
//!
//! | layer | modules |
//! |---|---|
//! | shared with the coordinator | [`config`], [`run_page`], [`run_devices`], [`run_groups`], [`wire`], [`pages_file`] |
//! | the kernel | [`sys`] |
//! | plain data structures | [`address`], [`arena`], [`lock`], [`table`], [`regions`], [`budget`], [`staging`], [`batch`], [`streams`], [`mailbox`], [`relief`], [`slot_table`], [`text`] |
//! | swap devices | [`io`], [`swap`] |
//! | the engine | [`engine`], [`fault`], [`events`], [`reclaim`], [`workingset`], [`cold`], [`pressure`], [`proactive`], [`swap_in`], [`shortage`] |
//! | threads of the pager | [`pager`], [`handler`], [`reclaimer`], [`watcher`], [`unpageable`], [`credentials`], [`core_dump`], [`link`] |
//! | threads of the program | [`hook_stack`], [`mapping`], [`locking`], [`exclude`], [`exec`], [`start`], [`adopt`], [`commit`], [`fork`], [`child_report`], [`inline`], [`rendezvous`], [`signals`], [`chaos`] |
#![no_std]

pub mod address;
pub mod adopt;
pub mod arena;
pub mod batch;
pub mod budget;
pub mod chaos;
pub mod child_report;
pub mod cold;
pub mod commit;
pub mod config;
pub mod context;
pub mod core_dump;
pub mod counters;
pub mod credentials;
pub mod engine;
pub mod entry_batch;
pub mod events;
pub mod exclude;
pub mod exec;
pub mod fault;
pub mod fork;
pub mod handler;
pub mod hook_stack;
pub mod inline;
pub mod io;
pub mod late_moves;
pub mod link;
pub mod lock;
pub mod locking;
pub mod mailbox;
pub mod mapping;
pub mod pager;
pub mod pages_file;
pub mod pressure;
pub mod proactive;
pub mod reclaim;
pub mod reclaimer;
pub mod regions;
pub mod relief;
pub mod rendezvous;
pub mod run_devices;
pub mod run_groups;
pub mod run_page;
pub mod shortage;
pub mod signals;
pub mod slot_table;
pub mod staging;
pub mod start;
pub mod streams;
pub mod swap;
pub mod swap_cache;
pub mod swap_in;
pub mod sys;
pub mod table;
pub mod text;
pub mod unpageable;
pub mod watcher;
pub mod wire;
pub mod workingset;
