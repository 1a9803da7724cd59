//! `vswap status`: all runs in a line each, or one in full.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::args::StatusArgs;
use crate::control::client::{HASTE, PATIENCE, Silence, find, status_of};
use crate::control::place;
use crate::size::Size;

/// Prints what was asked for.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let printed = match &args.run {
        Some(argument) => {
            let run = find(argument)?;
            let status = status_of(&run, PATIENCE).map_err(|silence| silence.of(&run))?;
            print(args.json, &status, |out| print_run(out, &Status(&status)))
        }
        None => {
            let runs = all();
            print(args.json, &Value::from(runs.clone()), |out| print_list(out, &runs))
        }
    };
    match printed {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// How all runs are. One that does not answer has an `error` instead.
fn all() -> Vec<Value> {
    let answer = |run: &place::Entry| match status_of(run, HASTE) {
        Ok(status) => Some(status),
        Err(Silence::Ended) => None,
        Err(silence) => {
            let error = silence.of(run).to_string();
            Some(json!({ "version": 1, "name": run.name, "pid": run.pid, "error": error }))
        }
    };
    place::runs().iter().filter_map(answer).collect()
}

fn print(
    as_json: bool,
    value: &Value,
    as_text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !as_json {
        return as_text(&mut out);
    }
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

fn print_list(out: &mut dyn Write, runs: &[Value]) -> io::Result<()> {
    if runs.is_empty() {
        return writeln!(out, "no runs");
    }
    writeln!(
        out,
        "{:<16} {:>8} {:>8} {:>8} {:>8} {:>8}  COMMAND",
        "NAME", "PID", "RAM", "USED", "SWAPPED", "MEMBERS"
    )?;
    for run in runs {
        let status = Status(run);
        let name = run["name"].as_str().unwrap_or("-");
        if let Some(error) = run["error"].as_str() {
            writeln!(out, "{name:<16} {:>8} {error}", status.number("/pid"))?;
            continue;
        }
        writeln!(
            out,
            "{name:<16} {:>8} {:>8} {:>8} {:>8} {:>8}  {}",
            status.number("/pid"),
            status.amount("/ram_bytes"),
            status.amount("/charged_bytes"),
            status.amount("/now/swapped_bytes"),
            status.items("members").len(),
            status.text("command").chars().take(60).collect::<String>(),
        )?;
        print_nested(out, &status)?;
    }
    Ok(())
}

/// The runs in a run, below it.
fn print_nested(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    for group in status.items("groups").iter().skip(1) {
        let indent = "  ".repeat(group["depth"].as_u64().unwrap_or(0) as usize);
        let group = Status(group);
        let max = group.0["memory.max"].as_u64().map_or("max".to_owned(), Size::text);
        writeln!(
            out,
            "{:<16} {:>8} {max:>8} {:>8} {:>8} {:>8}  {}",
            indent + &group.text("name"),
            group.number("/pid"),
            group.amount("/memory.current"),
            group.amount("/swapped_bytes"),
            group.number("/pagers"),
            group.text("command"),
        )?;
    }
    Ok(())
}

fn print_run(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    print_swaps(out, status)?;
    writeln!(out)?;
    print_space(out, status)?;
    print_groups(out, status)?;
    print_members(out, status)?;
    writeln!(out)?;
    let counters = status.0["counters"].as_object();
    for (name, value) in counters.into_iter().flatten() {
        writeln!(out, "{name} {value}")?;
    }
    Ok(())
}

/// As /proc/swaps, in KiB, and with the kernel's way of writing a space in a name.
fn print_swaps(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    writeln!(out, "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority")?;
    for swap in status.items("swaps") {
        let name = swap["filename"].as_str().unwrap_or_default();
        let name = name.replace('\\', "\\134").replace(' ', "\\040");
        let kib = |key: &str| swap[key].as_u64().unwrap_or(0) >> 10;
        writeln!(
            out,
            "{name:<40}{:<16}{:<16}{:<16}{}",
            swap["type"].as_str().unwrap_or_default(),
            kib("size_bytes"),
            kib("used_bytes"),
            swap["priority"],
        )?;
    }
    Ok(())
}

fn print_space(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    let now = |key: &str| status.amount(&format!("/now/{key}"));
    let seconds = status.0["wall_seconds"].as_f64().unwrap_or(0.0);
    writeln!(out, "command        {}", status.text("command"))?;
    writeln!(
        out,
        "running        for {seconds:.0} s as pid {}, {} of its processes had a pager",
        status.0["pid"], status.0["pagers"]
    )?;
    writeln!(
        out,
        "virtual space  {} swapped out ({} pages), {} of it kept with pages in RAM, {} of metadata",
        now("swapped_bytes"),
        status.number("/now/swapped_bytes") / 4096,
        now("swapcached_bytes"),
        now("metadata_bytes"),
    )?;
    writeln!(
        out,
        "pool           {} for {} of compressed data",
        now("pool_bytes"),
        now("payload_bytes")
    )?;
    print_tiers(out, status)?;
    print_compaction(out, status)?;
    writeln!(
        out,
        "budget         {} of {} used, {} of it resident (at most {})",
        status.amount("/charged_bytes"),
        status.amount("/ram_bytes"),
        now("resident_bytes"),
        status.amount("/peak/resident_bytes"),
    )
}

/// How dense the devices are, and what that has cost.
fn print_compaction(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    let sum = |key| status.items("swaps").iter().filter_map(|swap| swap[key].as_u64()).sum();
    let [used, leased] = ["used_bytes", "leased_bytes"].map(sum);
    if leased == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "swap devices   {} in use of {} leased, {} pages ({}) moved together",
        Size::text(used),
        Size::text(leased),
        status.number("/counters/swap_compacted"),
        status.amount("/counters/swap_compacted_bytes"),
    )
}

fn print_groups(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    writeln!(
        out,
        "\n{:<20} {:>8} {:>15} {:>15} {:>15} {:>9} {:>6}",
        "GROUP", "PID", "MEMORY/MAX", "SWAP/MAX", "ZSWAP/MAX", "WRITEBACK", "FAILED"
    )?;
    for group in status.items("groups") {
        let indent = "  ".repeat(group["depth"].as_u64().unwrap_or(0) as usize);
        let group = Status(group);
        let of = |current: &str, max: &str| {
            let max = match group.0[max].as_u64() {
                Some(bytes) => Size::text(bytes),
                None => "max".to_owned(),
            };
            format!("{}/{max}", group.amount(&format!("/{current}")))
        };
        writeln!(
            out,
            "{:<20} {:>8} {:>15} {:>15} {:>15} {:>9} {:>6}",
            indent + &group.text("name"),
            group.number("/pid"),
            of("memory.current", "memory.max"),
            of("swap.current", "swap.max"),
            of("zswap.current", "zswap.max"),
            group.number("/zswap.writeback"),
            group.number("/swap.events/fail"),
        )?;
    }
    Ok(())
}

/// The devices that a group brought with one priority are a tier.
fn print_tiers(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    #[derive(Default)]
    struct Tier {
        name: Option<String>,
        used: u64,
        size: u64,
        is_allowed: bool,
    }
    let mut tiers = BTreeMap::<(&str, i64), Tier>::new();
    for swap in status.items("swaps") {
        let priority = swap["priority"].as_i64().unwrap_or(0);
        let bytes = |key: &str| swap[key].as_u64().unwrap_or(0);
        let tier =
            tiers.entry((swap["group"].as_str().unwrap_or_default(), -priority)).or_default();
        tier.name = swap["tier"].as_str().map(str::to_owned);
        tier.used += bytes("used_bytes");
        tier.size += bytes("size_bytes");
        tier.is_allowed = swap["allowed"].as_bool().unwrap_or(true);
    }
    // Of one without a name there is nothing to say that the devices do not.
    if tiers.len() == 1 && tiers.values().all(|tier| tier.name.is_none()) {
        return Ok(());
    }
    let own = status.0.pointer("/groups/0/name").and_then(Value::as_str);
    for ((group, priority), tier) in tiers {
        let (used, size) = (Size::text(tier.used), Size::text(tier.size));
        let name = tier.name.as_deref().unwrap_or("-");
        let of = if Some(group) == own { String::new() } else { format!(" of {group}") };
        let note = if tier.is_allowed { "" } else { ", not for this run" };
        writeln!(
            out,
            "tier           {name}{of} (priority {}): {used} of {size} used{note}",
            -priority
        )?;
    }
    Ok(())
}

fn print_members(out: &mut dyn Write, status: &Status<'_>) -> io::Result<()> {
    let members = status.items("members");
    if !members.is_empty() {
        writeln!(
            out,
            "\n{:>8} {:<16} {:>9} {:>9} {:>9}",
            "PID", "NAME", "RESIDENT", "SWAPPED", "SHARE"
        )?;
    }
    for member in members {
        let member = Status(member);
        writeln!(
            out,
            "{:>8} {:<16} {:>9} {:>9} {:>9}",
            member.number("/pid"),
            member.text("name"),
            member.amount("/resident_bytes"),
            member.amount("/swapped_bytes"),
            member.amount("/share_bytes"),
        )?;
    }
    Ok(())
}

/// A reading of what a run said.
struct Status<'a>(&'a Value);

impl<'a> Status<'a> {
    fn number(&self, pointer: &str) -> u64 {
        self.0.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    fn amount(&self, pointer: &str) -> String {
        Size::text(self.number(pointer))
    }

    /// Fit for a terminal: names and command lines may hold anything.
    fn text(&self, key: &str) -> String {
        let text = self.0[key].as_str().unwrap_or_default();
        text.replace(|c: char| c.is_control(), " ")
    }

    fn items(&self, key: &str) -> &'a [Value] {
        self.0[key].as_array().map_or(&[], Vec::as_slice)
    }
}
