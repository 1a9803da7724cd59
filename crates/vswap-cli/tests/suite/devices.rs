//! Swap devices: temporary files, files and block devices of `mkswap`, several at once, and what forks
//! leave on them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::job::{Running, scratch};
use crate::support::{Job, Outcome, Vswap};

const MIB: u64 = 1 << 20;

/// Where the header ends.
const PAGE: u64 = 4096;

/// A file that `mkswap` has formatted, without blocks but for the header; gone when dropped.
struct Area(PathBuf);

impl Area {
    fn new(mib: u64) -> Self {
        let path = scratch("area");
        File::create(&path).and_then(|file| file.set_len(mib * MIB)).expect("a sparse file");
        let made = Command::new("mkswap").arg(&path).output().expect("mkswap, of util-linux");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(path)
    }

    fn option(&self, priority: i16) -> String {
        format!("{},prio={priority}", self.0.display())
    }

    fn header(&self) -> Vec<u8> {
        let mut header = vec![0; PAGE as usize];
        let file = File::open(&self.0).expect("the area");
        file.read_exact_at(&mut header, 0).expect("its header");
        header
    }

    /// Bytes that were written, the header apart.
    fn written(&self) -> u64 {
        (fs::metadata(&self.0).expect("the area").blocks() * 512).saturating_sub(PAGE)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// D MiB of random words, r 1.
fn random(mib: &str) -> Job {
    Job::c("fill", &[mib, "2", "1", "random"])
}

fn swaps(job: &Job, vswap: &Vswap) -> Outcome {
    let paged = job.compare(vswap);
    paged.stats().assert_used_the_swap_file();
    paged
}

/// D 64 MiB, r 1, B 24 MiB.
#[test]
fn an_area_of_mkswap_is_used_and_its_header_left_alone() {
    let area = Area::new(128);
    let header = area.header();
    for vswap in [Vswap::ram("24M"), Vswap::ram("24M").inline()] {
        swaps(&random("64"), &vswap.device(&area.option(0)));
    }
    assert!(area.written() > 32 * MIB, "{} bytes", area.written());
    assert!(area.header() == header, "the header changed");
}

/// D 96 MiB, r about 13, B 16 MiB: objects of all sizes.
#[test]
fn objects_of_all_sizes_come_back() {
    for vswap in [Vswap::ram("16M"), Vswap::ram("16M").inline()] {
        swaps(&Job::c("remap", &["96", "1", "nosys"]), &vswap.clone().swap("256M"));
        swaps(&Job::c("threads", &["96", "4", "1"]), &vswap.swap("256M").no_encrypt());
    }
}

#[test]
fn devices_of_one_priority_take_turns() {
    let [one, other] = [Area::new(128), Area::new(128)];
    let vswap = Vswap::ram("24M").device(&one.option(3)).device(&other.option(3));
    swaps(&random("64"), &vswap);
    let written = [one.written(), other.written()];
    assert!(written.iter().all(|bytes| *bytes > 12 * MIB), "{written:?}");
}

#[test]
fn a_device_of_lower_priority_waits_until_the_others_are_full() {
    let [low, high] = [Area::new(128), Area::new(24)];
    let vswap = Vswap::ram("24M").device(&low.option(1)).device(&high.option(2));
    swaps(&random("80"), &vswap);
    assert!(high.written() > 20 * MIB, "{} bytes on the preferred one", high.written());
    assert!(low.written() > 8 * MIB, "{} bytes on the other", low.written());

    let [low, high] = [Area::new(128), Area::new(128)];
    let vswap = Vswap::ram("24M").device(&low.option(1)).device(&high.option(2));
    swaps(&random("48"), &vswap);
    assert_eq!(low.written(), 0, "the preferred one had room");
}

/// D 24 MiB in each of two processes, r 1, B 20 MiB. A child's slots and those that it shared come
/// back: 24 children write 144 MiB, and 48 generations of an eighth are written by the parent.
#[test]
fn what_parent_and_children_leave_on_a_device_comes_back() {
    for vswap in [Vswap::ram("20M"), Vswap::ram("20M").inline()] {
        swaps(&Job::c("family", &["24", "24"]), &vswap.swap("112M"));
    }
}

/// D 40 MiB, r 1, B 24 MiB, and too little on the device by its limit.
#[test]
fn a_run_takes_no_more_of_its_devices_than_it_may() {
    let area = Area::new(128);
    let vswap = Vswap::ram("24M").device(&area.option(0)).option(["--swap-max", "16M"]);
    let job = random("64");
    let outcome = job.start_under(&vswap).finish();
    assert_eq!(outcome.status.code(), Some(137), "{}", outcome.describe());
    let said = "the 16 MiB that --swap-max allows on swap devices are taken";
    assert!(outcome.stderr.contains(said), "{}", outcome.describe());
    assert!(area.written() <= 16 * MIB, "{} bytes", area.written());
    swaps(&random("32"), &vswap);
}

/// D 96 MiB, r about 13, B 32 MiB: without the limit 7 MiB would be in the pool.
#[test]
fn the_pool_takes_no_more_than_it_may() {
    let vswap = Vswap::ram("32M").swap("128M").option(["--zswap-max", "3M"]);
    let paged = swaps(&Job::c("fill", &["96", "2", "1"]), &vswap);
    let pool = paged.stats().peak("pool_bytes");
    assert!(pool <= 4 * MIB, "{pool} bytes");
}

/// D 96 MiB, r about 13, B 24 MiB, nearly all on the device: 24 576 pages are read six times, and few bytes
/// of them changed in between.
#[test]
fn pages_that_were_only_read_leave_for_nothing() {
    for vswap in [Vswap::ram("24M"), Vswap::ram("24M").inline()] {
        let own =
            if vswap.to_string().contains("inline") { &["96", "6", "own"][..] } else { &["96"] };
        let vswap = vswap.swap("256M").option(["--zswap-max", "1M"]);
        let paged = swaps(&Job::c("reread", own), &vswap);
        let counter = |name| paged.stats().counter(name);
        assert!(counter("swap_cache_clean") > 20_000, "{}", counter("swap_cache_clean"));
        assert!(counter("swap_cache_stale") > 0, "no change was noticed");
        assert!(counter("pswpout") < 60_000, "{} pages were written", counter("pswpout"));
    }
}

/// D 40 MiB, r 13, B 256 MiB: the pool has all the room it could want, and is left after three seconds.
#[test]
fn what_rests_in_the_pool_for_long_is_written_back() {
    let vswap = Vswap::ram("256M").swap("64M").option(["--writeback-after", "3"]);
    let running = Job::c("rest", &["40", "threads"]).stdin("").start_under(&vswap);
    running.wait_for("ready");
    control("reclaim", &running, &["32M"]);
    let account = || {
        let status: Value =
            serde_json::from_str(&control("status", &running, &["--json"])).expect("JSON");
        ["/counters/written_back_pages", "/now/payload_bytes", "/now/swap_used_bytes"]
            .map(|key| status.pointer(key).and_then(Value::as_u64).expect("a number"))
    };
    let [early, payload, _] = account();
    assert!(early < 500 && payload > MIB, "{early} pages were written at once, {payload} left");
    let deadline = Instant::now() + Duration::from_secs(60);
    let [written, _, used] = loop {
        let now @ [_, payload, _] = account();
        if payload < 64 << 10 {
            break now;
        }
        assert!(Instant::now() < deadline, "{now:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(written > 7000 && used > 4 * MIB, "{written} pages, {used} bytes");
    // What has only just left has its time before it, but for what does not compress.
    control("reclaim", &running, &["1M"]);
    let [now, payload, _] = account();
    assert!(now < written + 50 && payload > 8 << 10, "{now} after {written}, {payload} left");
    wake(running);
}

fn wake(mut running: Running) {
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
}

/// D 64 MiB, r about 2, B 48 MiB.
#[test]
fn what_rests_in_the_pool_is_coded_again() {
    let job = Job::c("rest", &["64", "words"]).stdin("");
    let mut running = job.start_under(&Vswap::ram("48M").option(["--cold-codec", "zstd:3"]));
    running.wait_for("ready");
    let account = || {
        let json = control("status", &running, &["--json"]);
        let status: Value = serde_json::from_str(&json).expect("JSON");
        ["/counters/recompressed", "/now/payload_bytes"]
            .map(|key| status.pointer(key).and_then(Value::as_u64).expect("a number"))
    };
    let [_, before] = account();
    let deadline = Instant::now() + Duration::from_secs(60);
    // It goes through all that is there, then stops.
    let mut last = 0;
    let after = loop {
        std::thread::sleep(Duration::from_secs(2));
        let [recoded, payload] = account();
        if recoded > 1000 && recoded == last {
            break payload;
        }
        last = recoded;
        assert!(Instant::now() < deadline, "{recoded} were coded again");
    };
    assert!(after < before, "{before} bytes became {after}");
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
}

/// D 96 MiB, r 1, B 24 MiB: what does not fit on 48 MiB goes to the slow device, the oldest first, before
/// the fast one is full; and what is read comes back from there.
#[test]
fn cold_data_goes_to_the_slow_tier_and_comes_back_when_it_is_used() {
    let [slow, fast] = [Area::new(192), Area::new(48)];
    let named = |area: &Area, rest: &str| format!("{},{rest}", area.0.display());
    let vswap = Vswap::ram("24M")
        .device(&named(&slow, "tier=slow,prio=1"))
        .device(&named(&fast, "prio=7,tier=fast"));
    let mut running = Job::c("rest", &["96", "random"]).stdin("").start_under(&vswap);
    running.wait_for("ready");
    let run = running.pid();
    let deadline = Instant::now() + Duration::from_secs(60);
    let full = 48 * MIB / 16 * 15;
    let status = loop {
        let status = status(run);
        let used = |number: usize| status["swaps"][number]["used_bytes"].as_u64().expect("bytes");
        if used(0) > 8 * MIB && used(1) < full {
            break status;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(
        (&status["swaps"][0]["tier"], &status["swaps"][1]["tier"]),
        (&"slow".into(), &"fast".into())
    );
    assert!(status["counters"]["swap_demoted"].as_u64() > Some(0), "{status:#}");
    let shown = control("status", &running, &[]);
    assert!(shown.contains("tier           fast (priority 7): "), "{shown}");
    // A third device of the fast tier needs no priority, and has no other.
    let third = Area::new(32);
    let refused = try_control("swapon", &running, &[&named(&third, "tier=fast,prio=3")]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("tier fast has priority 7, not 3"), "{said}");
    control("swapon", &running, &[&named(&third, "tier=fast")]);
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
    assert!(outcome.stats().counter("swap_promoted") > 100, "{}", outcome.describe());
}

/// D 64 MiB, r 1, B 24 MiB.
#[test]
fn a_run_writes_to_the_tiers_that_it_was_given_only() {
    let [slow, fast] = [Area::new(128), Area::new(128)];
    let named = |area: &Area, rest: &str| format!("{},{rest}", area.0.display());
    let vswap = Vswap::ram("24M")
        .device(&named(&fast, "prio=7,tier=fast"))
        .device(&named(&slow, "prio=1,tier=slow"))
        .option(["--tiers", "slow"]);
    swaps(&random("64"), &vswap);
    assert_eq!(fast.written(), 0, "it was not allowed");
    assert!(slow.written() > 32 * MIB, "{} bytes", slow.written());
    let refused = Job::new("true", &[]).under(&Vswap::ram("24M").option(["--tiers", "fsat"]));
    assert!(refused.stderr.contains("no --swap is in tier 'fsat'"), "{}", refused.describe());
}

/// D 44 MiB, r 1 and about 13: all of it comes back to RAM, and what was kept of it goes.
#[test]
fn nothing_is_left_of_the_virtual_space_when_nothing_is_swapped() {
    for words in [&["44", "random"][..], &["44"]] {
        let area = Area::new(128);
        let vswap = Vswap::ram("80M").device(&area.option(0));
        let job = Job::c("rest", &[words, &["twice"]].concat()).stdin("");
        let mut running = job.start_under(&vswap);
        running.wait_for("ready");
        let run = running.pid();
        control("reclaim", &running, &["16M"]);
        let now = |key: &str| status(run)["now"][key].as_u64().expect("a number");
        assert!(
            now("swapped_bytes") > 8 * MIB && now("slot_metadata_bytes") > 0,
            "{:#}",
            status(run)
        );
        running.send("go");
        running.wait_for("again");
        control("swapoff", &running, &["--all"]);
        let deadline = Instant::now() + Duration::from_secs(20);
        while now("slot_metadata_bytes") > 0 {
            assert!(Instant::now() < deadline, "{:#}", status(run));
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(
            (now("swapped_bytes"), now("swapcached_bytes"), now("swap_used_bytes")),
            (0, 0, 0)
        );
        running.send("go");
        let outcome = running.finish();
        assert!(outcome.status.success(), "{}", outcome.describe());
    }
}

/// D 64 MiB, r 1, B 16 MiB. Half of the pages go, one by one: by themselves, or because they are written
/// anew after a fork.
#[test]
fn holes_on_a_device_are_closed_while_the_program_runs() {
    for (way, vswap) in [
        ("drop", Vswap::ram("16M")),
        ("drop", Vswap::ram("16M").inline()),
        ("fork", Vswap::ram("16M")),
    ] {
        let area = Area::new(256);
        let vswap = vswap.device(&area.option(0));
        let job = Job::c("holes", &["64", way]).stdin("");
        let mut running = job.start_under(&vswap);
        running.wait_for("filled");
        let run = running.pid();
        let before = leased(run);
        assert!(before.1 > 40 * MIB, "{before:?}");
        running.send("go");
        running.wait_for("holes");
        let (moved, after) = compacted(run);
        assert!(after.0 > 16 * MIB, "{after:?}");
        // An extent is spare, one is being filled, and the last one is not full.
        assert!(after.1 <= after.0 + 16 * MIB, "{before:?} became {after:?}, {moved} moved");
        // What was on the device before, in blocks of 512 bytes.
        assert!(moved <= before.0 / 4608, "{moved} moved of {before:?}");
        let shown = control("status", &running, &[]);
        assert!(shown.contains("moved together"), "{shown}");
        running.send("end");
        let outcome = running.finish();
        assert!(outcome.status.success(), "{}", outcome.describe());
    }
}

/// What is used on the first device of a run, and what of it is leased.
fn leased(run: u32) -> (u64, u64) {
    let status = status(run);
    let number = |key: &str| status["swaps"][0][key].as_u64().expect("a number");
    (number("used_bytes"), number("leased_bytes"))
}

/// Objects that were moved together, when no more are, and what is leased then.
fn compacted(run: u32) -> (u64, (u64, u64)) {
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut last = 0;
    loop {
        std::thread::sleep(Duration::from_secs(2));
        let moved = status(run)["counters"]["swap_compacted"].as_u64().expect("a number");
        if moved > 0 && moved == last {
            return (moved, leased(run));
        }
        last = moved;
        assert!(Instant::now() < deadline, "{moved} moved, {:?}", leased(run));
    }
}

fn status(run: u32) -> Value {
    let mut vswap = Command::new("timeout");
    vswap.args(["60", env!("CARGO_BIN_EXE_vswap"), "status", &run.to_string(), "--json"]);
    serde_json::from_slice(&vswap.output().expect("vswap").stdout).expect("JSON")
}

/// What `vswap COMMAND PID ARGUMENTS` says; it must succeed.
fn control(command: &str, run: &Running, arguments: &[&str]) -> String {
    let output = try_control(command, run, arguments);
    assert!(output.status.success(), "{command} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn try_control(command: &str, run: &Running, arguments: &[&str]) -> Output {
    let mut vswap = Command::new("timeout");
    vswap.args(["60", env!("CARGO_BIN_EXE_vswap"), command, &run.pid().to_string()]);
    vswap.args(arguments).output().expect("vswap")
}

/// D 96 MiB by four threads, r about 13, B 24 MiB: devices come and go while threads verify.
#[test]
fn devices_come_and_go_while_a_program_runs() {
    let areas = [Area::new(128), Area::new(128)];
    for vswap in [Vswap::ram("24M"), Vswap::ram("24M").inline()] {
        let vswap = vswap.device(&areas[0].option(1));
        let job = Job::c("threads", &["128", "4", "16"]);
        let plain = job.plain();
        let running = job.start_under(&vswap);
        let mut rounds = 0;
        while !try_control("status", &running, &[]).status.success() && running.is_alive() {}
        while running.is_alive() {
            let (next, last) = (&areas[(rounds + 1) % 2], &areas[rounds % 2]);
            let on = try_control("swapon", &running, &[&next.option(1)]);
            let off = try_control("swapoff", &running, &[&last.0.to_string_lossy()]);
            let said = String::from_utf8_lossy(&[on.stderr, off.stderr].concat()).into_owned();
            // Its socket goes before it does.
            let is_ending = said.contains("has ended") || said.contains("no run");
            if is_ending || !running.is_alive() {
                break;
            }
            assert_eq!(said, "", "round {rounds}");
            rounds += 1;
        }
        let outcome = running.finish();
        assert_eq!(outcome.stdout, plain.stdout, "{}", outcome.describe());
        outcome.stats().assert_used_the_swap_file();
        assert!(rounds >= 2, "only {rounds} rounds");
    }
}

/// D 48 MiB, r 1, B 24 MiB: what does not fit stays where it is, and the device in use.
#[test]
fn a_device_that_is_needed_stays() {
    let area = Area::new(128);
    let job = Job::c("rest", &["48", "random"]).stdin("");
    let mut running = job.start_under(&Vswap::ram("24M").device(&area.option(0)));
    running.wait_for("ready");
    let name = area.0.to_string_lossy().into_owned();
    let refused = try_control("swapoff", &running, &[&name]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("fit nowhere else"), "{said}");
    let status = control("status", &running, &[]);
    assert!(status.contains(&name), "{status}");

    let other = Area::new(128);
    control("swapon", &running, &[&other.option(0)]);
    let said = control("swapoff", &running, &[&name]);
    assert!(said.contains("does not use"), "{said}");
    let status = control("status", &running, &[]);
    assert!(!status.contains(&name) && status.contains(&*other.0.to_string_lossy()), "{status}");
    // Nobody has it any more.
    control("swapon", &running, &[&area.option(0)]);
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
}

/// Every 512th byte behind the header is changed while the program waits: no page may come back as
/// anything but itself.
#[test]
fn damage_is_found_whatever_it_is() {
    let area = Area::new(64);
    let vswap = Vswap::ram("32M").device(&area.option(0));
    let mut running = Job::c("poison", &[]).stdin("").start_under(&vswap);
    running.wait_for("ready ");
    damage(&area.0);
    let incompressible = (0..512).filter(|page| page % 4 == 3);
    running.send(&incompressible.map(|page| page.to_string()).collect::<Vec<_>>().join(" "));
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
    assert_eq!(outcome.stats().counter("poisoned"), 128);
}

fn damage(path: &Path) {
    let file = File::options().read(true).write(true).open(path).expect("the area");
    let len = file.metadata().expect("metadata").len();
    let mut all = vec![0; (len - PAGE) as usize];
    file.read_exact_at(&mut all, PAGE).expect("its pages");
    all.iter_mut().step_by(512).for_each(|byte| *byte ^= 0x10);
    file.write_all_at(&all, PAGE).expect("written");
    file.sync_all().expect("on the disk");
}
