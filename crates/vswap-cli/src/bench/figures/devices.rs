//! Swap devices beside what the disk can do, and beside the kernel's swap file.
//!
//! One file is written in pieces of 1 MiB, then it is a run's swap device, and then its pages are read one by
//! one: the same blocks of the same disk in all three. The kernel's swap file lies beside it.

use std::ffi::OsString;

use super::super::contents::{Mix, PAGE_BYTES};
use super::super::kernel::Journal;
use super::super::moved::kernel_counter;
use super::super::rows::{Bench, Row};
use super::super::session::{Session, Subject};
use super::super::workload::stepped::{Done, Step};
use super::super::workload::{Latencies, Phase};
use super::disk::Disk;
use super::{Figures, Judged, Measure, Target};

/// Reads of a page, by each in turns.
const READS: u64 = 2000;
/// And how many of them at a time.
const READS_PER_TURN: u64 = 200;

const ENGINES: [Row; 2] = [Row::Handoff, Row::Inline];

/// What the kernel's swap file gave.
#[derive(Clone, Copy)]
struct OnKernel {
    ordered_read_ns: f64,
    /// Written for each byte that left memory.
    written: f64,
    /// Taken for each byte that is out.
    held: f64,
}

/// One round.
pub fn measure(bench: &Bench<'_>, journal: &Journal, figures: &mut Figures) {
    let mixes = [Mix::Random, bench.contents];
    let mixes = if bench.contents == Mix::Random { &mixes[..1] } else { &mixes };
    for &mix in mixes {
        let title = format!("kernel swap file, {}", mix.argument());
        let kernel = figures.attempt(bench, &title, |_| on_kernel(bench, mix));
        for row in ENGINES {
            let title = format!("{}, {}", row.title(), mix.argument());
            figures.attempt(bench, &title, |figures| {
                on_device(bench, journal, row, mix, kernel, figures)
            });
            if mix == Mix::Random {
                let title = format!("{}, reclaim", row.title());
                figures.attempt(bench, &title, |figures| reclaim(bench, journal, row, figures));
            }
        }
    }
}

fn subject(bench: &Bench<'_>, row: Row, contents: Mix) -> Subject {
    Subject {
        row,
        ram: bench.ram,
        options: Vec::new(),
        bytes: bench.bytes,
        contents,
        accesses: READS_PER_TURN,
    }
}

fn on_kernel(bench: &Bench<'_>, mix: Mix) -> anyhow::Result<OnKernel> {
    let mut session = Session::start(bench, &subject(bench, Row::SwapFile, mix))?;
    let before = kernel_counter("pswpout");
    session.step(Step::Phase(Phase::Fill))?;
    let written = (kernel_counter("pswpout") - before) * PAGE_BYTES as u64;
    let (swapped, used) = (session.kernel_swapped()?, session.kernel_swap_used()?);
    let read = session.step(Step::Phase(Phase::OrderedRead))?;
    session.finish()?;
    let swapped = swapped.max(1) as f64;
    Ok(OnKernel {
        ordered_read_ns: read.ns_per_access(),
        written: written as f64 / swapped,
        held: used as f64 / swapped,
    })
}

/// Raw pages take a block more each than they have bytes; and there are extents in use in part.
fn room(bench: &Bench<'_>) -> u64 {
    bench.bytes / 4 * 5 + (64 << 20)
}

fn device(disk: &Disk<'_>) -> anyhow::Result<Vec<OsString>> {
    Ok(vec!["--swap".into(), disk.format()?.into()])
}

fn on_device(
    bench: &Bench<'_>,
    journal: &Journal,
    row: Row,
    mix: Mix,
    kernel: Option<OnKernel>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let mut disk = Disk::create(journal, &bench.swap_dir, room(bench))?;
    let plain = disk.write(bench.bytes)?;
    let options = device(&disk)?;
    let mut session = Session::start(bench, &Subject { options, ..subject(bench, row, mix) })?;
    let title = |what: &str| format!("{what}, {}, {}", mix.argument(), row.title());
    let fill = session.step(Step::Phase(Phase::Fill))?;
    let (status, written) = (session.status()?, session.written_bytes());
    if mix == Mix::Random {
        let bytes = status.counter("pswpout")? * PAGE_BYTES as u64;
        let own = mib_per_second(bytes, &fill);
        figures.add(writeback(title("writeback of a fill, MiB/s")), own, Some(plain));
    }
    let swapped = status.now("swapped_bytes")?.max(1) as f64;
    // What does not compress cannot take less.
    let target = (mix != Mix::Random).then_some(Target::AtMost(0.5));
    let of_swapped = |name| Measure {
        name: title(name),
        peer: Some("kernel swap file"),
        judged: Judged::OfPeer,
        target,
    };
    let held = status.now("pool_bytes")? + status.now("swap_used_bytes")?;
    let peer = kernel.map(|kernel| kernel.held);
    figures.add(of_swapped("GiB held per GiB out"), held as f64 / swapped, peer);
    if let Some(written) = written {
        let peer = kernel.map(|kernel| kernel.written);
        figures.add(of_swapped("GiB written per GiB out"), written as f64 / swapped, peer);
    }
    let read = session.step(Step::Phase(Phase::OrderedRead))?;
    let measure = Measure {
        name: title("ordered read, ns/page"),
        peer: Some("kernel swap file, page-cluster 3"),
        judged: Judged::TimesBelowPeer,
        target: Some(Target::AtLeast(4.0)),
    };
    figures.add(measure, read.ns_per_access(), kernel.map(|kernel| kernel.ordered_read_ns));
    if mix == Mix::Random {
        read_single_pages(&mut session, &mut disk, &title, figures)?;
    }
    session.finish()
}

fn read_single_pages(
    session: &mut Session<'_, '_>,
    disk: &mut Disk<'_>,
    title: &impl Fn(&str) -> String,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let (mut own, mut plain) = (Latencies::default(), Latencies::default());
    for _ in 0..READS / READS_PER_TURN {
        let done = session.step(Step::ReadMissing)?;
        own.add(&done.latencies.unwrap_or_default());
        disk.read_pages(READS_PER_TURN, &mut plain)?;
    }
    for (name, share, target) in [("p50", 0.5, Some(Target::AtMost(1.5))), ("p99", 0.99, None)] {
        let times = own.quantile(share).zip(plain.quantile(share));
        let Some((own, plain)) = times else { anyhow::bail!("nothing was out") };
        let measure = Measure {
            name: title(&format!("page from the device, {name}, ns")),
            peer: Some("4 KiB O_DIRECT pread"),
            judged: Judged::OfPeer,
            target,
        };
        figures.add(measure, own as f64, Some(plain as f64));
    }
    Ok(())
}

/// Writeback with nothing else to do: all of it is in RAM, and then is asked for.
fn reclaim(
    bench: &Bench<'_>,
    journal: &Journal,
    row: Row,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let disk = Disk::create(journal, &bench.swap_dir, room(bench))?;
    let plain = disk.write(bench.bytes)?;
    let options = device(&disk)?;
    let ram = bench.bytes / 2 * 3;
    let subject = Subject { ram, options, ..subject(bench, row, Mix::Random) };
    let mut session = Session::start(bench, &subject)?;
    session.step(Step::Phase(Phase::Fill))?;
    let before = session.status()?.counter("pswpout")?;
    let took = session.reclaim(bench.bytes / 8 * 7)?;
    let pages = session.status()?.counter("pswpout")? - before;
    let own = (pages * PAGE_BYTES as u64) as f64 / f64::from(1 << 20) / took.as_secs_f64();
    let name = format!("writeback of a reclaim, MiB/s, {}", row.title());
    figures.add(writeback(name), own, Some(plain));
    session.finish()
}

fn writeback(name: String) -> Measure {
    Measure {
        name,
        peer: Some("dd oflag=direct bs=1M"),
        judged: Judged::OfPeer,
        target: Some(Target::AtLeast(0.8)),
    }
}

fn mib_per_second(bytes: u64, done: &Done) -> f64 {
    bytes as f64 / f64::from(1 << 20) / (done.ns as f64 / 1e9)
}
