//! The report as one HTML file that needs nothing else: bars with their spread for each phase, and
//! the distribution of access times for the random ones.
//!
//! It is written as XML too (every element is closed), so that a test, or any XML parser, can tell
//! whether it is whole.

mod plot;

use std::fmt::Write as _;

use super::report::{Absence, Cell, Report};
use super::rows::Row;
use super::workload::Phase;
use plot::{Bar, Line};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; }
figure { display: inline-block; margin: 1em 0; }
figcaption { font-weight: 600; }
svg { font: 12px system-ui, sans-serif; }
.plain { fill: #999; stroke: #999; }
.kernel { fill: #4575b4; stroke: #4575b4; }
.vswap { fill: #d95f0e; stroke: #d95f0e; }
.spread { stroke: #222; stroke-width: 1.5; }
.axis { stroke: #bbb; stroke-width: 1; }
.line { fill: none; stroke-width: 1.5; }
text { stroke: none; fill: #222; }
";

/// The whole file.
pub fn render(report: &Report) -> String {
    let mut page =
        String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\" />");
    let _ = write!(page, "<title>vswap bench</title><style>{STYLE}</style></head>\n<body>\n");
    page.push_str("<h1>vswap bench</h1>\n");
    write_conditions(&mut page, report);
    for threads in report.threads() {
        let _ = writeln!(page, "<h2>{}</h2>", count(threads, "thread"));
        for phase in report.measured_phases() {
            write_phase(&mut page, report, threads, phase);
        }
        write_costs(&mut page, report, threads);
    }
    write_absences(&mut page, "Skipped", &report.skipped);
    write_absences(&mut page, "Failed", &report.failed);
    page.push_str("</body>\n</html>\n");
    page
}

fn write_conditions(page: &mut String, report: &Report) {
    let conditions = &report.conditions;
    let quick = if conditions.quick { ", quick" } else { "" };
    let sizes = format!(
        "{} MiB in {} MiB of RAM{}",
        conditions.bytes >> 20,
        conditions.ram >> 20,
        conditions.quota()
    );
    let machine = format!("{} CPUs, {}", conditions.processors, conditions.processor);
    let rounds = format!("{}{quick}", conditions.rounds);
    let swap_file =
        if conditions.swap_file { "each limited row" } else { "kernel rows that need one" };
    page.push_str("<table>\n");
    for (name, value) in [
        ("data", sizes.as_str()),
        ("contents", &conditions.contents),
        ("swap file", swap_file),
        ("rounds", &rounds),
        ("kernel", &conditions.kernel),
        ("processor", &machine),
        ("huge pages", &conditions.huge_pages),
        ("memory cgroup", conditions.cgroup.unwrap_or("none")),
    ] {
        let _ = writeln!(page, "<tr><td>{name}</td><td>{}</td></tr>", escape(value));
    }
    page.push_str(
        "</table>\n<p>Wall time in ns per page or access, in µs per request to redis, or in ms for another whole program; shorter is better. A bar is the median of \
         the rounds, the line across its end goes from the least to the greatest. The factor is how many \
         times faster a row is than the best kernel row. Each kernel row shows the better of its \
         read-ahead settings (page-cluster).</p>\n",
    );
}

fn write_phase(page: &mut String, report: &Report, threads: usize, phase: Phase) {
    let of_phase = |cell: &&Cell| cell.threads == threads && cell.phase == phase;
    let cells: Vec<&Cell> = report.cells.iter().filter(of_phase).collect();
    let bars: Vec<_> = cells.iter().map(|cell| bar(cell)).collect();
    let title = phase.heading();
    let _ =
        writeln!(page, "<figure><figcaption>{title}</figcaption>\n{}</figure>", plot::bars(&bars));
    write_rounds(page, &cells);
    let lines: Vec<_> = cells.iter().filter_map(|cell| line(cell)).collect();
    if !lines.is_empty() {
        let caption = format!("{title}: share of accesses that took no longer");
        let plot = plot::distributions(&lines);
        let _ = writeln!(page, "<figure><figcaption>{caption}</figcaption>\n{plot}</figure>");
        write_quantiles(page, &cells);
    }
}

/// Where there are several.
fn write_rounds(page: &mut String, cells: &[&Cell]) {
    let several = || cells.iter().filter(|cell| cell.ns.rounds.len() > 1);
    if several().next().is_none() {
        return;
    }
    page.push_str(
        "<table>\n<tr><th>row</th><th>median</th><th>mean</th><th>standard deviation</th>\
         <th>ratio of each round</th></tr>\n",
    );
    for cell in several() {
        let [median, mean, deviation] =
            [cell.ns.median, cell.ns.mean, cell.ns.deviation].map(|ns| ns / cell.phase.unit().1);
        let ratios = cell.round_ratios.iter().map(|ratio| format!("{ratio:.2}"));
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td>{median:.0}</td><td>{mean:.0}</td><td>{deviation:.0}</td><td>{}</td></tr>",
            escape(&cell.row.title()),
            ratios.collect::<Vec<_>>().join(" "),
        );
    }
    page.push_str("</table>\n");
}

fn bar(cell: &Cell) -> Bar {
    let ratio = cell.ratio.map_or(String::new(), |ratio| format!(", {ratio:.2}×"));
    let [min, median, max] =
        [cell.ns.min, cell.ns.median, cell.ns.max].map(|ns| ns / cell.phase.unit().1);
    let read_ahead = cell.page_cluster.map_or(String::new(), |pages| format!(" ({pages})"));
    Bar {
        label: format!("{}{read_ahead}", cell.row.title()),
        class: class(cell.row),
        values: [min, median, max],
        text: format!("{median:.0}{ratio}"),
    }
}

fn line(cell: &Cell) -> Option<Line> {
    let latency = cell.latency.as_ref()?;
    Some(Line {
        label: cell.row.title(),
        class: class(cell.row),
        points: latency.distribution.iter().map(|&(ns, share)| (ns as f64, share)).collect(),
    })
}

fn write_quantiles(page: &mut String, cells: &[&Cell]) {
    page.push_str("<table>\n<tr><th>ns</th><th>p50</th><th>p99</th><th>p99.9</th></tr>\n");
    for (cell, latency) in cells.iter().filter_map(|cell| Some((cell, cell.latency.as_ref()?))) {
        let title = escape(&cell.row.title());
        let _ = writeln!(
            page,
            "<tr><td>{title}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            latency.p50, latency.p99, latency.p99_9,
        );
    }
    page.push_str("</table>\n");
}

fn write_costs(page: &mut String, report: &Report, threads: usize) {
    page.push_str(
        "<h3>CPU time and RAM</h3>\n<p>User and system time of the whole tree, vswap's processes \
         included, in ns; not that of kswapd and other threads of the kernel.</p>\n<table>\n\
         <tr><th>row</th><th>per access</th><th>in the kernel</th><th>per page moved</th>\
         <th>real, s</th><th>user, s</th><th>sys, s</th></tr>\n",
    );
    for cpu in report.cpu.iter().filter(|cpu| cpu.threads == threads) {
        let moved = cpu
            .per_moved_page
            .as_ref()
            .map_or("–".into(), |spread| format!("{:.0}", spread.median));
        let read_ahead = cpu.page_cluster.map_or(String::new(), |pages| format!(" ({pages})"));
        let _ = writeln!(
            page,
            "<tr><td>{}{read_ahead}</td><td>{:.0}</td><td>{:.0}</td><td>{moved}</td>\
             <td>{:.1}</td><td>{:.1}</td><td>{:.1}</td></tr>",
            escape(&cpu.row.title()),
            cpu.per_access.median,
            cpu.system_per_access.median,
            cpu.seconds[0].median,
            cpu.seconds[1].median,
            cpu.seconds[2].median,
        );
    }
    page.push_str(
        "</table>\n<table>\n<tr><th>row</th><th>limit, MiB</th><th>pool outside it, MiB</th>\
         <th>most RAM, MiB</th></tr>\n",
    );
    for memory in report.memory.iter().filter(|memory| memory.threads == threads) {
        let mib = |bytes: Option<u64>| bytes.map_or("–".into(), |b| (b >> 20).to_string());
        let title = escape(&memory.row.title());
        let pool = mib(Some(memory.uncharged_pool).filter(|&pool| pool > 0));
        let (limit, peak) = (mib(memory.limit), mib(memory.peak));
        let _ = writeln!(
            page,
            "<tr><td>{title}</td><td>{limit}</td><td>{pool}</td><td>{peak}</td></tr>"
        );
    }
    page.push_str("</table>\n");
}

fn write_absences(page: &mut String, heading: &str, absences: &[Absence]) {
    if absences.is_empty() {
        return;
    }
    let _ = writeln!(page, "<h2>{heading}</h2>\n<ul>");
    for absence in absences {
        let (title, reason) = (absence.title(), escape(&absence.reason));
        let _ = writeln!(page, "<li>{title}: {reason}</li>");
    }
    page.push_str("</ul>\n");
}

const fn class(row: Row) -> &'static str {
    match row {
        Row::Plain => "plain",
        Row::Handoff | Row::Inline => "vswap",
        _ => "kernel",
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
