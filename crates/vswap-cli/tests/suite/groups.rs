//! Groups: runs inside runs, and their limits. What the kernel's own tests of zswap
//! (selftests/cgroup/test_zswap.c) ask of memory cgroups is asked here of groups.
//!
//! The program is `rest`: it fills its memory, says `ready PID`, waits for a line, and verifies. With a second
//! thread its run sees it although it is far below its budget, and `vswap reclaim` evicts from it.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::job::{Running, scratch};
use crate::support::{Job, Outcome, Vswap, program};

const MIB: u64 = 1 << 20;

/// A shell with `$vswap`, `$rest` and `$fill`.
fn shell(script: &str) -> Job {
    Job::new("sh", &["-c", script])
        .env("vswap", env!("CARGO_BIN_EXE_vswap"))
        .env("rest", &program("rest").display().to_string())
        .env("fill", &program("fill").display().to_string())
}

/// A run with a nested one for each list of options, in each of which `rest` holds so many MiB.
fn resting(vswap: &Vswap, mib: u32, nested: &[&str]) -> Running {
    let one = |options: &&str| format!("\"$vswap\" run {options} -- \"$rest\" {mib} threads <&3 &");
    let all: Vec<String> = nested.iter().map(one).collect();
    let script = format!("exec 3<&0; {} wait", all.join(" "));
    let running = shell(&script).stdin("").start_under(vswap);
    let deadline = Instant::now() + Duration::from_secs(60);
    while members(&running) < nested.len() {
        assert!(Instant::now() < deadline, "{:#}", status(&running));
        std::thread::sleep(Duration::from_millis(50));
    }
    running
}

fn members(running: &Running) -> usize {
    let output = control("status", running, &["--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let members = status["members"].as_array().map_or(&[][..], Vec::as_slice);
    let is_full =
        |one: &&Value| one["name"] == "rest" && one["charged_bytes"].as_u64() > Some(30 * MIB);
    members.iter().filter(is_full).count()
}

fn control(command: &str, run: &Running, arguments: &[&str]) -> Output {
    let mut vswap = Command::new("timeout");
    vswap.args(["60", env!("CARGO_BIN_EXE_vswap"), command, &run.pid().to_string()]);
    vswap.args(arguments).output().expect("vswap")
}

fn status(run: &Running) -> Value {
    let output = control("status", run, &["--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What the status says of a group.
fn group(run: &Running, name: &str) -> Value {
    let status = status(run);
    let groups = status["groups"].as_array().expect("groups");
    let found = groups.iter().find(|group| group["name"] == name);
    found.unwrap_or_else(|| panic!("no group {name}: {:#}", status["groups"])).clone()
}

fn number(group: &Value, pointer: &str) -> u64 {
    let found = group.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no {pointer}: {group:#}"))
}

/// Evicts from a group; the exit code, which is 1 if less could be evicted than that.
fn reclaim(run: &Running, size: &str, group: &str) -> i32 {
    let output = control("reclaim", run, &[size, "--group", group]);
    let code = output.status.code().expect("an exit code");
    assert!(code <= 1, "{output:?}");
    code
}

/// Lets all that rest verify what they hold.
fn wake(mut running: Running) -> Outcome {
    running.send("go");
    let outcome = running.finish();
    assert!(outcome.status.success(), "{}", outcome.describe());
    assert_eq!(outcome.stderr, "", "{}", outcome.name);
    outcome
}

/// test_zswap_writeback, in a group and in a child of one. D 40 MiB, r 13: the pool holds a third of it.
#[test]
fn a_parent_that_forbids_writeback_beats_its_child() {
    for (outer, inner, writes) in
        [(&[][..], "", true), (&[], "--no-writeback", false), (&["--no-writeback"], "", false)]
    {
        let vswap = outer
            .iter()
            .fold(Vswap::ram("256M").swap("128M"), |vswap, option| vswap.option([option]));
        let options = format!("--group child --zswap-max 1M {inner}");
        let running = resting(&vswap, 40, &[&options]);
        let code = reclaim(&running, "30M", "child");
        let child = group(&running, "child");
        assert_eq!(number(&child, "/zswap.writeback"), u64::from(inner.is_empty()));
        let written = number(&child, "/stat/pswpout");
        assert_eq!((code == 0, written > 0), (writes, writes), "{vswap} {options}: {child:#}");
        assert_eq!(number(&child, "/swap.current") > 0, writes, "{child:#}");
        assert!(number(&child, "/zswap.current") <= 2 * MIB, "{child:#}");
        assert!(number(&child, "/stat/zswpout") > 1000, "the pool was not used: {child:#}");
        wake(running);
    }
}

/// test_no_invasive_cgroup_shrink: a group at its zswap.max writes back its own pages, not those of another
/// that are older.
#[test]
fn a_group_at_its_limit_writes_back_its_own_pages() {
    let vswap = Vswap::ram("256M").swap("128M");
    let running = resting(&vswap, 40, &["--group control", "--group full --zswap-max 1M"]);
    assert_eq!(reclaim(&running, "24M", "control"), 0);
    let before = group(&running, "control");
    assert_eq!(reclaim(&running, "30M", "full"), 0);
    let [control, full] = ["control", "full"].map(|name| group(&running, name));
    assert!(number(&full, "/stat/zswpwb") > 0, "{full:#}");
    assert!(number(&full, "/zswap.current") <= 2 * MIB, "{full:#}");
    // What does not compress went out at once.
    assert_eq!(control["stat"], before["stat"]);
    assert!(number(&control, "/zswap.current") > MIB, "{control:#}");
    assert_eq!(control["zswap.current"], before["zswap.current"]);
    wake(running);
}

/// test_swapin_nozswap, and the same for swap.max.
#[test]
fn a_limit_of_0_means_never() {
    let vswap = Vswap::ram("256M").swap("128M");
    let running =
        resting(&vswap, 40, &["--group dry --zswap-max 0", "--group ashore --swap-max 0"]);
    assert_eq!((reclaim(&running, "24M", "dry"), reclaim(&running, "24M", "ashore")), (0, 0));
    let [dry, ashore] = ["dry", "ashore"].map(|name| group(&running, name));
    assert_eq!((number(&dry, "/stat/zswpout"), number(&dry, "/zswap.current")), (0, 0), "{dry:#}");
    assert!(number(&dry, "/stat/pswpout") > 4000, "{dry:#}");
    assert!(number(&dry, "/swap.current") >= 4 * MIB, "{dry:#}");
    assert_eq!((number(&ashore, "/swap.current"), number(&ashore, "/stat/pswpout")), (0, 0));
    assert!(number(&ashore, "/stat/zswpout") > 4000, "{ashore:#}");
    wake(running);
}

/// What a group may have on devices is for all below it together; what does not fit stays in the pool.
#[test]
fn the_parent_of_two_groups_limits_their_sum() {
    let vswap = Vswap::ram("256M").swap("128M");
    let inner = "sh -c '\"$vswap\" run --group one --zswap-max 0 -- \"$rest\" 40 threads & \
                 \"$vswap\" run --group two --zswap-max 0 -- \"$rest\" 40 threads & wait'";
    let script = format!("\"$vswap\" run --group both --swap-max 8M -- {inner}");
    // A command in the background has no standard input of its own.
    let script = script.replace("threads &", "threads <&3 &");
    let running = shell(&format!("exec 3<&0; {script}")).stdin("").start_under(&vswap);
    while members(&running) < 2 {
        std::thread::sleep(Duration::from_millis(50));
    }
    let ends = ["one", "two"].map(|name| reclaim(&running, "38M", name));
    let [both, one, two] = ["both", "one", "two"].map(|name| group(&running, name));
    assert!(ends.contains(&1), "more than 8M: {both:#}");
    assert_eq!((number(&both, "/depth"), number(&two, "/depth")), (1, 2));
    let current = |group| number(group, "/swap.current");
    assert_eq!(current(&both), 8 * MIB, "{both:#}");
    assert_eq!(current(&one) + current(&two), 8 * MIB, "{one:#}{two:#}");
    let refused = |group| number(group, "/swap.events/max");
    assert!(refused(&both) > 0 && refused(&both) == refused(&one) + refused(&two), "{both:#}");
    assert!(number(&both, "/swap.events/fail") >= refused(&both));
    wake(running);
}

/// One group has all that its parent may have on devices; when it is gone, another writes there what waited in
/// the pool.
#[test]
fn swap_space_that_others_give_back_is_used() {
    let vswap = Vswap::ram("256M").swap("128M");
    let inner = "sh -c '\"$vswap\" run --group one --zswap-max 0 -- \"$rest\" 40 threads <&3 & \
                 \"$vswap\" run --group two --ram 64M -- \"$rest\" 40 random <&3 & wait'";
    let script = format!("exec 3<&0; \"$vswap\" run --group both --swap-max 8M -- {inner}");
    let mut running = shell(&script).stdin("").start_under(&vswap);
    while members(&running) < 2 {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!((reclaim(&running, "38M", "one"), reclaim(&running, "8M", "two")), (0, 0));
    assert_eq!(number(&group(&running, "one"), "/swap.current"), 8 * MIB);
    assert_eq!(number(&group(&running, "two"), "/stat/pswpout"), 0);
    let status = status(&running);
    let members = status["members"].as_array().expect("members");
    let one = members.iter().find(|member| member["group"] == "one").expect("it is there");
    let one = Pid::from_raw(one["pid"].as_u64().expect("a number") as i32).expect("a process");
    kill_process(one, Signal::KILL).expect("ours");
    let deadline = Instant::now() + Duration::from_secs(20);
    while number(&group(&running, "two"), "/stat/pswpout") == 0 {
        assert!(Instant::now() < deadline, "{:#}", group(&running, "two"));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(reclaim(&running, "512K", "two"), 0);
    }
    running.send("go");
    let outcome = running.finish();
    assert!(String::from_utf8_lossy(&outcome.stdout).contains("ok rest"), "{}", outcome.describe());
}

/// D 96 MiB in one process of the nested run, r 13.
#[test]
fn a_nested_run_is_within_the_budget_of_the_outer() {
    let job = shell("\"$vswap\" run -- \"$fill\" 96 2 1");
    let plain = Job::c("fill", &["96", "2", "1"]).plain();
    for vswap in [Vswap::ram("48M"), Vswap::ram("48M").inline()] {
        let paged = job.compare_with(&plain, &vswap);
        paged.stats().assert_swapped();
        let resident = paged.stats().peak("resident_bytes");
        assert!(resident <= 48 * MIB, "{resident} bytes");
    }
}

/// The same with a budget of the nested run's own, and its own statistics.
#[test]
fn a_nested_run_has_a_budget_of_its_own_too() {
    let stats = scratch("nested-stats.json");
    let job = shell("\"$vswap\" run --ram 32M --stats \"$stats\" -- \"$fill\" 96 2 1")
        .env("stats", &stats.display().to_string());
    let plain = Job::c("fill", &["96", "2", "1"]).plain();
    let paged = job.compare_with(&plain, &Vswap::ram("256M"));
    let resident = paged.stats().peak("resident_bytes");
    assert!(resident <= 32 * MIB, "{resident} bytes");
    let nested: Value = serde_json::from_slice(&fs::read(&stats).expect("it was written")).unwrap();
    for key in ["zswpout", "zswpin", "pgfault"] {
        let counted = nested["counters"][key].as_u64();
        assert_eq!(counted, Some(paged.stats().counter(key)), "{key}");
    }
    assert_eq!(nested["ram_bytes"], 32 * MIB);
    let _ = fs::remove_file(stats);
}

/// A file that `mkswap` has formatted.
fn area(mib: u64) -> PathBuf {
    let path = scratch("area");
    File::create(&path).and_then(|file| file.set_len(mib * MIB)).expect("a sparse file");
    let made = Command::new("mkswap").arg(&path).output().expect("mkswap, of util-linux");
    assert!(made.status.success(), "{made:?}");
    path
}

fn written(area: &PathBuf) -> u64 {
    fs::metadata(area).expect("the area").blocks() * 512
}

/// D 64 MiB, r 1, B 24 MiB.
#[test]
fn a_nested_run_writes_to_its_own_device_or_to_that_of_the_outer() {
    let [outer, inner] = [area(128), area(128)];
    let plain = Job::c("fill", &["64", "2", "1", "random"]).plain();
    let vswap = Vswap::ram("24M").device(&outer.display().to_string());
    let own = "\"$vswap\" run --swap \"$area\" -- \"$fill\" 64 2 1 random";
    let job = shell(own).env("area", &inner.display().to_string());
    job.compare_with(&plain, &vswap).stats().assert_used_the_swap_file();
    assert!(written(&outer) < MIB && written(&inner) > 32 * MIB, "{}", written(&outer));
    // Nobody has it any more.
    job.compare_with(&plain, &vswap);

    let shared = shell("\"$vswap\" run -- \"$fill\" 64 2 1 random");
    shared.compare_with(&plain, &vswap).stats().assert_used_the_swap_file();
    assert!(written(&outer) > 32 * MIB, "{}", written(&outer));
    for area in [outer, inner] {
        let _ = fs::remove_file(area);
    }
}

/// D 64 MiB, r 1, B 24 MiB.
#[test]
fn a_nested_run_narrows_the_tiers_of_the_outer() {
    let [fast, slow, inner] = [area(128), area(128), area(128)];
    let named = |area: &PathBuf, rest: &str| format!("{},{rest}", area.display());
    let vswap = Vswap::ram("24M")
        .device(&named(&fast, "prio=7,tier=fast"))
        .device(&named(&slow, "prio=1,tier=slow"));
    let narrow = vswap.clone().option(["--tiers", "slow"]);
    let fill = "\"$fill\" 64 2 1 random";
    let plain = Job::c("fill", &["64", "2", "1", "random"]).plain();
    let deep = format!("\"$vswap\" run --tiers slow -- \"$vswap\" run -- {fill}");
    shell(&deep).compare_with(&plain, &vswap).stats().assert_used_the_swap_file();
    assert!(written(&fast) < MIB && written(&slow) > 32 * MIB, "{}", written(&fast));

    // Names and priorities of a nested run's own devices are its own.
    let own = format!("\"$vswap\" run --swap \"$area\" --tiers fast -- {fill}");
    let own = shell(&own).env("area", &named(&inner, "prio=1,tier=fast"));
    let before = written(&slow);
    own.compare_with(&plain, &narrow).stats().assert_used_the_swap_file();
    assert!(written(&inner) > 32 * MIB && written(&slow) <= before, "{}", written(&slow));

    for (vswap, option, said) in [
        (&narrow, "--tiers fast", "--tiers: the run around this one does without tier 'fast'"),
        (&vswap, "--tiers slow,fsat", "--tiers: no --swap is in tier 'fsat'"),
    ] {
        let outcome = shell(&format!("\"$vswap\" run {option} -- true")).under(vswap);
        assert_eq!(outcome.status.code(), Some(2), "{}", outcome.describe());
        assert!(outcome.stderr.contains(said), "{}", outcome.describe());
    }
    for area in [fast, slow, inner] {
        let _ = fs::remove_file(area);
    }
}

/// D 64 MiB, r 1, B 24 MiB: the line about data that does not fit names the limit that is in the way.
#[test]
fn who_reaches_the_limit_of_a_group_is_told_of_it() {
    let vswap = Vswap::ram("24M").swap("128M");
    let outcome = shell("\"$vswap\" run --group small --swap-max 8M -- \"$rest\" 64 random")
        .stdin("")
        .under(&vswap);
    assert_eq!(outcome.status.code(), Some(128 + 9), "{}", outcome.describe());
    let said = "the 8 MiB that --swap-max allows on swap devices are taken";
    assert!(outcome.stderr.contains(said), "{}", outcome.describe());
    assert!(outcome.stderr.contains("raise --ram or --swap-max"), "{}", outcome.describe());
}

/// The fast tier has 16 MiB and is filled beyond 15/16: to move anything down takes an extent more.
#[test]
fn demotion_stays_within_the_limit_of_a_group() {
    for (limit, demotes) in [("16M", false), ("32M", true)] {
        let [fast, slow] = [area(16), area(64)];
        let vswap = Vswap::ram("256M")
            .device(&format!("{},prio=7", fast.display()))
            .device(&format!("{},prio=1", slow.display()));
        let nested = format!("\"$vswap\" run --group bound --swap-max {limit} --ram 64M");
        let script = format!("exec 3<&0; {nested} -- \"$rest\" 40 random <&3 & wait");
        let running = shell(&script).stdin("").start_under(&vswap);
        while members(&running) < 1 {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(reclaim(&running, "13888K", "bound"), 0);
        let demoted = |status: &Value| number(status, "/counters/swap_demoted") > 0;
        let began = Instant::now();
        let patience = Duration::from_secs(if demotes { 20 } else { 1 });
        while !demoted(&status(&running)) && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(100));
        }
        let status = status(&running);
        assert_eq!(demoted(&status), demotes, "{limit}: {status:#}");
        assert!(demotes || number(&status, "/swaps/0/used_bytes") >= 15 * MIB, "{status:#}");
        assert_eq!(number(&group(&running, "bound"), "/swap.events/max"), 0, "{status:#}");
        wake(running);
        for area in [fast, slow] {
            let _ = fs::remove_file(area);
        }
    }
}

#[test]
fn a_nested_run_ends_as_its_program_does() {
    let vswap = Vswap::ram("256M");
    for (inner, code) in [("exit 42", 42), ("kill -TERM $$", 128 + 15), ("true", 0)] {
        let outcome =
            shell("\"$vswap\" run -- sh -c \"$inner\"; exit $?").env("inner", inner).under(&vswap);
        assert_eq!(outcome.status.code(), Some(code), "{}", outcome.describe());
    }
    for (option, said) in [
        ("--no-encrypt", "--no-encrypt: this run is inside another"),
        ("--pressure /tmp/x", "--pressure: this run is inside another"),
        ("--swap-max 1M", "1M is less than the unit of swap space"),
        ("--group a/b", "a name cannot hold '/'"),
    ] {
        let outcome = shell(&format!("\"$vswap\" run {option} -- true")).under(&vswap);
        assert_eq!(outcome.status.code(), Some(2), "{}", outcome.describe());
        assert!(outcome.stderr.contains(said), "{}", outcome.describe());
    }
}

/// What a nested run leaves when it is killed goes on as part of its group, which goes with it.
#[test]
fn a_group_outlives_its_vswap_run_and_goes_with_its_last_process() {
    let vswap = Vswap::ram("256M").swap("128M");
    let running = resting(&vswap, 40, &["--group lost --zswap-max 1M", "--group kept"]);
    let shown = control("status", &running, &[]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("\nGROUP ") && shown.contains("\n  lost "), "{shown}");
    let lost = number(&group(&running, "lost"), "/pid");
    kill_process(Pid::from_raw(lost as i32).expect("a process"), Signal::KILL).expect("ours");
    assert_eq!(reclaim(&running, "24M", "lost"), 0);
    let lost = group(&running, "lost");
    assert!(number(&lost, "/pagers") == 1 && number(&lost, "/stat/pswpout") > 0, "{lost:#}");
    let status = status(&running);
    let members = status["members"].as_array().expect("members");
    let left = members.iter().find(|one| one["group"] == "lost").expect("it goes on");
    let left = Pid::from_raw(left["pid"].as_u64().expect("a number") as i32).expect("a process");
    kill_process(left, Signal::KILL).expect("ours");
    let deadline = Instant::now() + Duration::from_secs(20);
    while control("reclaim", &running, &["4K", "--group", "lost"]).status.success()
        || self::status(&running)["groups"].as_array().map(Vec::len) != Some(2)
    {
        assert!(Instant::now() < deadline, "{:#}", self::status(&running));
        std::thread::sleep(Duration::from_millis(50));
    }
    wake(running);
}
