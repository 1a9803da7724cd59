//! `vswap bench` changes the whole machine's swap, and has to put it back however it ends.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

const TIMEOUT: Duration = Duration::from_secs(60);
const LOCK: &str = "/tmp/vswap-bench.lock";

/// What the bench changes on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    swaps: Vec<PathBuf>,
    zram: Vec<PathBuf>,
    zswap: Vec<(PathBuf, String)>,
    page_cluster: String,
    groups: Vec<PathBuf>,
    swap_files: Vec<PathBuf>,
}

/// How long a short bench may take, with others before it.
const BENCH_TIMEOUT: Duration = Duration::from_secs(400);

/// Held by each test, or those that wait for the lock of a bench would wait for all others.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl Machine {
    fn look(swap_dir: &Path) -> Self {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let swaps = read(Path::new("/proc/swaps"));
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let zswap = entries(Path::new("/sys/module/zswap/parameters"));
        let mut groups = Vec::new();
        find_groups(Path::new("/sys/fs/cgroup"), &mut groups);
        Self {
            swaps: swaps.map(PathBuf::from).collect(),
            zram: entries(Path::new("/sys/class/block"))
                .into_iter()
                .filter(|path| path.to_string_lossy().contains("zram"))
                .collect(),
            zswap: zswap.into_iter().map(|path| (path.clone(), read(&path))).collect(),
            page_cluster: read(Path::new("/proc/sys/vm/page-cluster")),
            groups,
            swap_files: entries(swap_dir),
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn find_groups(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in entries(dir).into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vswap-bench-")) {
            found.push(path.clone());
        }
        find_groups(&path, found);
    }
}

/// A directory for swap files, on a disk.
struct SwapDir(PathBuf);

impl SwapDir {
    fn new(name: &str) -> Self {
        let dir = Path::new("/var/tmp").join(format!("vswap-{name}-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for SwapDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn start(row: &str, swap_dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vswap"))
        .args(["bench", "--size", "96M", "--ram", "72M", "--threads", "1", "--rounds", "99"])
        .args(["--rows", row, "--swap-dir"])
        .arg(swap_dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until `done`, or fails and kills the bench.
fn wait_until(bench: &mut Child, what: &str, mut done: impl FnMut(&mut Child) -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done(bench) {
        if Instant::now() > deadline {
            let _ = bench.kill();
            panic!("{what}: not within {TIMEOUT:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Takes the lock that a bench holds, and the guard that it left behind. Others on this machine may
/// have it for as long as a bench takes.
fn take_lock() -> Option<fs::File> {
    let deadline = Instant::now() + TIMEOUT;
    // Before the first bench there is no such file.
    while let Ok(lock) = fs::File::open(LOCK) {
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Some(lock);
        }
        assert!(Instant::now() < deadline, "{LOCK} is held by another bench");
        std::thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Interrupts a bench in the middle of a row, and checks that the machine is as before.
fn interrupt(row: &str, signal: Signal) -> Option<ExitStatus> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may configure swap");
        return None;
    }
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let swap_dir = SwapDir::new(&format!("{row}-{}", signal.as_raw()));
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let lock = take_lock();
        let before = Machine::look(&swap_dir.0);
        drop(lock);
        let mut bench = start(row, &swap_dir.0);
        let group = format!("vswap-bench-{}", bench.id());
        let is_own_group = |path: &PathBuf| path.ends_with(&group);
        let mut ended = false;
        wait_until(&mut bench, "its swap is in use", |bench| {
            let now = Machine::look(&swap_dir.0);
            ended = bench.try_wait().unwrap().is_some();
            // The group is this bench's own, so the lock is too, and so the swap.
            ended || (now.swaps != before.swaps && now.groups.iter().any(is_own_group))
        });
        if !ended {
            kill_process(Pid::from_child(&bench), signal).unwrap();
            wait_until(&mut bench, "it ends", |bench| bench.try_wait().unwrap().is_some());
            // A bench that was killed cannot wait for its guard.
            let _lock = take_lock();
            assert_eq!(Machine::look(&swap_dir.0), before);
            return Some(bench.wait().unwrap());
        }
        let mut why = String::new();
        bench.stderr.unwrap().read_to_string(&mut why).unwrap();
        if why.contains("SKIPPED") {
            eprintln!("{why}");
            return None;
        }
        let can_retry = why.contains("another vswap bench") && Instant::now() < deadline;
        assert!(can_retry, "it ended by itself: {why}");
    }
}

#[test]
fn an_interrupted_bench_restores_zswap_and_its_swap_file() {
    if let Some(status) = interrupt("zswap-lzo", Signal::INT) {
        assert_eq!(status.code(), Some(130));
    }
}

#[test]
fn an_interrupted_bench_removes_its_zram_device() {
    if let Some(status) = interrupt("zram-lz4", Signal::TERM) {
        assert_eq!(status.code(), Some(143));
    }
}

#[test]
fn the_guard_restores_zswap_after_a_killed_bench() {
    interrupt("zswap-lzo", Signal::KILL);
}

#[test]
fn the_guard_removes_the_zram_device_of_a_killed_bench() {
    interrupt("zram-lz4", Signal::KILL);
}

#[test]
fn options_that_exclude_each_other_are_both_named() {
    let kernel = ["--kernel-build", "/nowhere"];
    for (arguments, named) in [
        (&["--devices", "--density"][..], ["--devices", "--density"]),
        (&["--programs", "--swap-cache"], ["--programs", "--swap-cache"]),
        (&["--scaling", "--devices"], ["--scaling", "--devices"]),
        (&["--scaling", "--programs"], ["--scaling", "--programs"]),
        (&[&kernel[..], &["--density"]].concat(), ["--kernel-build", "--density"]),
        (&kernel, ["--kernel-build", "--programs"]),
    ] {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_vswap"));
        let output = bench.arg("bench").args(arguments).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(named.iter().all(|option| said.contains(option)), "{arguments:?}: {said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
}

/// Runs a bench to its end, and checks that it leaves nothing behind; `None` if it was refused for want
/// of a right.
fn finish(name: &str, arguments: &[&str]) -> Option<Finished> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let swap_dir = SwapDir::new(name);
    let json = std::env::temp_dir().join(format!("vswap-{name}-{}.json", std::process::id()));
    let deadline = Instant::now() + BENCH_TIMEOUT;
    loop {
        let mut bench = Command::new(env!("CARGO_BIN_EXE_vswap"))
            .args(["bench", "--json"])
            .arg(&json)
            .arg("--swap-dir")
            .arg(&swap_dir.0)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let group = format!("vswap-bench-{}", bench.id());
        while bench.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                let _ = bench.kill();
                panic!("not within {BENCH_TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = bench.wait_with_output().unwrap();
        let [table, said] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        if said.contains("another vswap bench") && Instant::now() < deadline {
            // Others may measure for long.
            std::thread::sleep(Duration::from_secs(1));
            continue;
        }
        if said.contains("--cpus: ") {
            eprintln!("SKIPPED: {said}");
            return None;
        }
        let text = fs::read_to_string(&json).unwrap_or_default();
        let _ = fs::remove_file(&json);
        assert!(output.status.success(), "{table}{said}");
        if said.contains("SKIPPED") {
            eprintln!("{said}");
        }
        assert_eq!(entries(&swap_dir.0), [] as [PathBuf; 0], "left in the directory");
        let groups = Machine::look(&swap_dir.0).groups;
        assert!(!groups.iter().any(|path| path.ends_with(&group)), "{groups:?}");
        return Some(Finished { table, json: serde_json::from_str(&text).unwrap() });
    }
}

struct Finished {
    table: String,
    json: serde_json::Value,
}

const SMALL: [&str; 8] =
    ["--size", "48M", "--ram", "32M", "--threads", "1", "--rows", "plain,handoff"];

#[test]
fn a_bench_says_what_each_round_gave_under_a_quota() {
    let arguments = [&SMALL[..], &["--rounds", "2", "--phases", "random-read", "--cpus", "1.5"]];
    let Some(Finished { table, json }) = finish("quota", &arguments.concat()) else { return };
    assert!(table.contains(", 1.5 CPUs;") && table.contains("real, user, sys"), "{table}");
    assert_eq!(json["conditions"]["cpus"], 1.5);
    let cells = json["cells"].as_array().unwrap();
    assert_eq!(cells.len(), 4, "{json}");
    assert!(cells.iter().all(|cell| cell["ns"]["rounds"].as_array().unwrap().len() == 2));
}

#[test]
fn whole_programs_run_and_a_servers_requests_are_timed() {
    let arguments = [&SMALL[..], &["--rounds", "1", "--programs"]].concat();
    let Some(Finished { table, json }) = finish("programs", &arguments) else { return };
    let cells = json["cells"].as_array().unwrap();
    let missing = json["conditions"]["missing_programs"].as_array().unwrap();
    assert_eq!(cells.len(), 2 * (5 - missing.len()), "{table}");
    for cell in cells {
        assert_eq!(cell["latency"].is_object(), cell["phase"] == "redis", "{cell}");
    }
    for absent in missing {
        assert!(table.contains("is not installed"), "{absent}");
    }
}

#[test]
fn scaling_is_shown_against_the_first_column() {
    let arguments = ["--scaling", "--quick", "--rows", "inline"];
    let Some(Finished { table, json }) = finish("scaling", &arguments) else { return };
    // Another column may be as fast by chance.
    let lines = table.lines().filter(|line| line.contains("(1.00×)"));
    assert_eq!(lines.count(), 6, "two series of three phases: {table}");
    // 64 MiB with 1, 2, 4 and 8 threads, 256 MiB with one.
    assert_eq!(json["cells"].as_array().unwrap().len(), 3 * 5);
}

/// Runs a whole bench of one round; its numbers.
fn complete(name: &str, arguments: &[&str]) -> serde_json::Value {
    let arguments = [&["--rounds", "1"], arguments].concat();
    finish(name, &arguments).expect("it asks for no quota").json
}

/// The medians of the figures whose names begin so.
fn medians<'a>(bench: &'a serde_json::Value, name: &'a str) -> impl Iterator<Item = f64> + use<'a> {
    let figures = bench["figures"].as_array().unwrap().iter();
    let named = figures.filter(move |figure| figure["name"].as_str().unwrap().starts_with(name));
    named.map(|figure| figure["own"]["median"].as_f64().unwrap())
}

#[test]
fn the_density_of_the_pool_is_measured() {
    let bench = complete("density", &["--density", "--size", "96M", "--ram", "64M"]);
    for name in ["payload / pool memory after a fill", "payload / pool memory after malloc churn"] {
        let densities: Vec<f64> = medians(&bench, name).collect();
        assert_eq!(densities.len(), 2, "handoff and inline: {bench:#}");
        assert!(densities.iter().all(|density| (0.5..1.0).contains(density)), "{densities:?}");
    }
    assert!(medians(&bench, "metadata").all(|bytes| bytes > 12.0), "{bench:#}");
    assert_eq!(medians(&bench, "cleaner's CPU").count(), 4);
}

#[test]
fn swap_devices_are_measured() {
    let bench = complete("devices", &["--devices", "--size", "64M", "--ram", "24M"]);
    for name in ["writeback of a fill", "writeback of a reclaim", "page from the device, p50"] {
        let medians: Vec<f64> = medians(&bench, name).collect();
        assert!(medians.len() == 2 && medians.iter().all(|&value| value > 0.0), "{bench:#}");
    }
    // Of what compresses 2.4 to 1 less is held and written than left memory, of random bits a little more.
    for (name, share) in
        [("GiB held per GiB out, heap", 0.2..0.9), ("GiB held per GiB out, random", 1.0..1.5)]
    {
        assert!(medians(&bench, name).all(|held| share.contains(&held)), "{bench:#}");
    }
    assert_eq!(medians(&bench, "ordered read").count(), 4);
}

#[test]
fn kept_copies_are_measured_on_and_off() {
    let bench = complete("kept", &["--swap-cache", "--size", "64M", "--ram", "24M", "--quick"]);
    assert_eq!(medians(&bench, "ordered read").count(), 6);
    assert_eq!(medians(&bench, "zipf read").count(), 6);
}

#[test]
fn every_row_is_shown_beside_the_physical_floor() {
    let arguments = ["--rows", "handoff", "--threads", "1", "--phases", "ordered-read"];
    let bench = complete("floor", &[&arguments[..], &["--size", "96M", "--ram", "64M"]].concat());
    assert!(bench["floor"]["out"].as_f64().unwrap() > bench["floor"]["copy"].as_f64().unwrap());
    assert!(bench["floors"][0]["times_floor"]["median"].as_f64().unwrap() > 0.0, "{bench:#}");
}

#[test]
fn the_layer_is_measured_on_zram() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root may make zram devices");
        return;
    }
    let arguments = [
        "--rows",
        "zram-lz4,handoff-zram",
        "--quick",
        "--threads",
        "1",
        "--size",
        "160M",
        "--ram",
        "112M",
    ];
    let bench = complete("layer", &arguments);
    let cells = bench["cells"].as_array().unwrap();
    if cells.is_empty() {
        eprintln!("SKIPPED: {}", bench["skipped"]);
        return;
    }
    assert!(cells.iter().any(|cell| cell["row"] == "handoff-zram"), "{bench:#}");
}
