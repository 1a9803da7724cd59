//! The control socket: how runs are found, who may use it, and that no client can do a run harm.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    LIMIT, Output, child_of, command, eventually, finish, is_root, send, skip, vswap, wait,
};

/// Where sockets are in these tests: nobody else's runs are in the way, or in danger.
struct Place(TempDir);

/// A run, killed with its program if the test does not end it.
struct Run {
    child: Option<Child>,
    pid: u32,
    program: u32,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        set_mode(directory.path(), 0o700);
        Self(directory)
    }

    fn vswap(&self, args: &[&str]) -> Command {
        let mut command = vswap(args);
        command.env("XDG_RUNTIME_DIR", self.0.path());
        command
    }

    /// A run of a program that waits, when its socket is there.
    fn start(&self, options: &[&str]) -> Run {
        let words = [&["run", "--ram", "64M"], options, &["--", "sleep", "60"]].concat();
        let child = self.vswap(&words).spawn().unwrap();
        let pid = child.id();
        let run = Run { child: Some(child), pid, program: child_of(pid) };
        eventually("the socket", || self.socket(&run).exists().then_some(()));
        run
    }

    fn status(&self, run: &str) -> Output {
        finish(&mut self.vswap(&["status", run]))
    }

    fn json(&self, run: &str) -> Value {
        let output = finish(&mut self.vswap(&["status", run, "--json"]));
        assert_eq!(output.end(), 0, "{output:?}");
        serde_json::from_str(&output.stdout).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("vswap")
    }

    fn socket(&self, run: &Run) -> PathBuf {
        self.path().join(run.pid.to_string())
    }

    fn files(&self) -> Vec<String> {
        let entries = self.path().read_dir().unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.contains("libvswap-"))
            .collect()
    }
}

impl Run {
    /// Ends the program, and waits for the run.
    fn end(mut self) -> Output {
        send(self.program as i32, libc::SIGTERM);
        wait(self.child.take().unwrap())
    }

    /// Kills `vswap run` alone.
    fn lose_coordinator(&mut self) {
        send(self.pid as i32, libc::SIGKILL);
        self.child.as_mut().unwrap().wait().unwrap();
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            send(self.program as i32, libc::SIGKILL);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A name that no test of another process uses.
fn name(text: &str) -> String {
    format!("{text}-{}", std::process::id())
}

#[track_caller]
fn assert_line(output: &Output, code: i32, parts: &[&str]) {
    assert_eq!(output.end(), code, "{output:?}");
    let line = output.line();
    assert!(line.starts_with("vswap: ") && line.contains("; "), "{line}");
    for part in parts {
        assert!(line.contains(part), "{part} is not in: {line}");
    }
}

#[test]
fn a_run_is_found_by_its_name_and_its_processes() {
    let (place, name) = (Place::new(), name("found"));
    let run = place.start(&["--name", &name]);
    for argument in [&name, &run.pid.to_string(), &run.program.to_string()] {
        let status = place.json(argument);
        assert_eq!((&status["pid"], &status["name"]), (&run.pid.into(), &name.as_str().into()));
        assert_eq!(status["command"], "sleep 60");
        assert_eq!(status["ram_bytes"], 64 << 20);
        assert_eq!(status["swaps"], Value::Array(Vec::new()));
    }
    let list = finish(&mut place.vswap(&["status"]));
    let line = list.stdout.lines().find(|line| line.starts_with(&name)).expect("a line of it");
    assert!(line.contains(&run.pid.to_string()) && line.ends_with("sleep 60"), "{line}");
    let all = finish(&mut place.vswap(&["status", "--json"]));
    let all: Vec<Value> = serde_json::from_str(&all.stdout).unwrap();
    assert!(all.iter().any(|status| status["name"] == name.as_str()));
    assert!(
        place
            .status(&name)
            .stdout
            .starts_with("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")
    );

    assert_line(&place.status("nobody"), 2, &["no run 'nobody'", &name]);
    let end = run.end();
    assert_eq!((end.end(), end.stderr.as_str()), (-libc::SIGTERM, ""));
    assert_line(&place.status(&name), 2, &["no run 'found-"]);
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn a_name_is_one_runs_until_that_ends() {
    let (place, name) = (Place::new(), name("one"));
    let first = place.start(&["--name", &name]);
    let second = || finish(&mut place.vswap(&["run", "--name", &name, "--", "true"]));
    let taken = format!("a run named '{name}' is there already");
    assert_line(&second(), 2, &[&taken]);
    assert_eq!(first.end().end(), -libc::SIGTERM);
    assert_eq!(second().end(), 0);
}

#[test]
fn what_a_killed_run_leaves_is_no_run() {
    let (place, name) = (Place::new(), name("killed"));
    let mut run = place.start(&["--name", &name, "--stats", "/dev/null"]);
    run.lose_coordinator();
    assert_eq!(place.files().len(), 2);
    assert_line(&place.status(&name), 2, &["no run 'killed-"]);
    assert_eq!(place.files(), Vec::<String>::new());
    // And where nobody has looked, it is replaced.
    let mut run = place.start(&["--name", &name]);
    run.lose_coordinator();
    let again = place.start(&["--name", &name]);
    assert_eq!(place.json(&name)["pid"], again.pid);
    assert_eq!(place.files().len(), 2);
}

/// They have no socket of their own: the run around them answers for them.
#[test]
fn runs_in_runs_are_runs() {
    let (place, outer, inner) = (Place::new(), name("outer"), name("inner"));
    let own = env!("CARGO_BIN_EXE_vswap");
    let words = ["run", "--name", &outer, "--", own, "run", "--name", &inner, "--", "sleep", "60"];
    let child = place.vswap(&words).spawn().unwrap();
    let pid = child.id();
    let inner_run = child_of(pid);
    let program = child_of(inner_run);
    let run = Run { child: Some(child), pid, program };
    let listed = || finish(&mut place.vswap(&["status"])).stdout;
    eventually("both names", || listed().contains(&format!("  {inner} ")).then_some(()));
    assert_eq!(place.files().len(), 2);
    assert_eq!(place.json(&outer)["program_pid"], inner_run);
    let status = eventually("its program", || {
        let status = finish(&mut place.vswap(&["status", &inner, "--json"]));
        serde_json::from_str::<Value>(&status.stdout).ok()
    });
    assert_eq!((&status["program_pid"], &status["name"]), (&program.into(), &inner.clone().into()));
    assert_eq!((&status["pid"], &status["command"]), (&inner_run.into(), &"sleep 60".into()));
    let refused = finish(&mut place.vswap(&["swapoff", &inner, "--all"]));
    assert_line(&refused, 2, &[&inner, "is inside another", &outer]);
    assert_eq!(run.end().end(), -libc::SIGTERM);
    assert_eq!(place.files(), Vec::<String>::new());
}

#[test]
fn a_run_that_ends_while_it_is_asked_is_no_hang() {
    let (place, name) = (Place::new(), name("ending"));
    let mut run = place.start(&["--name", &name]);
    // It cannot answer, so the client waits.
    send(run.pid as i32, libc::SIGSTOP);
    let client = place.vswap(&["reclaim", &name, "1M"]).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    run.lose_coordinator();
    assert_line(&wait(client), 1, &[&name, "has ended"]);
}

#[test]
fn a_run_that_is_stopped_is_listed_as_such() {
    let (place, name) = (Place::new(), name("stopped"));
    let run = place.start(&["--name", &name]);
    send(run.pid as i32, libc::SIGSTOP);
    let list = finish(&mut place.vswap(&["status"]));
    send(run.pid as i32, libc::SIGCONT);
    let line = list.stdout.lines().find(|line| line.starts_with(&name)).expect("a line of it");
    assert!(line.contains("does not answer"), "{line}");
    assert_eq!(place.json(&name)["pid"], run.pid);
}

#[test]
fn without_a_pager_nothing_can_be_reclaimed() {
    let (place, name) = (Place::new(), name("small"));
    let _run = place.start(&["--name", &name]);
    let output = finish(&mut place.vswap(&["reclaim", &name, "1M"]));
    assert_line(&output, 1, &["reclaimed 0 of the 1M", "none of its processes has a pager"]);
}

fn first_line(stream: &UnixStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn another_user_gets_one_line() {
    if !is_root() {
        return skip("another_user_gets_one_line", "only root can become another user");
    }
    let place = Place::new();
    let run = place.start(&[]);
    // As closed as it is, another user would not even come to the door.
    for (path, mode) in
        [(place.0.path(), 0o755), (&place.path(), 0o755), (&place.socket(&run), 0o777)]
    {
        set_mode(path, mode);
    }
    let socket = place.socket(&run);
    let stranger = thread::spawn(move || {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
        let mut stream = UnixStream::connect(socket).unwrap();
        let _ = stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n");
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        said
    });
    let said = stranger.join().unwrap();
    assert!(
        said.starts_with("{\"refused\":") && said.contains("belongs to another user"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
    assert_eq!(run.end().end(), -libc::SIGTERM);
}

#[test]
fn what_is_no_request_gets_one_line() {
    let place = Place::new();
    let run = place.start(&[]);
    let long = vec![b'x'; 1 << 20];
    let other = b"{\"version\":9,\"request\":\"status\"}\n";
    for (text, answer) in [
        (&b"hello\n"[..], "not a request"),
        (b"{}\n", "not a request"),
        (b"{\"version\":1,\"request\":\"reclaim\",\"bytes\":-1}\n", "not a request"),
        (b"\xff\xfe\n", "not a request"),
        (other, "version 1 of the protocol, not 9"),
        (&long, "too long"),
    ] {
        let mut stream = UnixStream::connect(place.socket(&run)).unwrap();
        // All of a long one may not be taken.
        let _ = stream.write_all(text);
        let line = first_line(&stream);
        assert!(line.starts_with("{\"refused\":") && line.contains(answer), "{line}");
    }
    assert_eq!(place.json(&run.pid.to_string())["pid"], run.pid);
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    rest.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Clients that say nothing, half a request, or nothing ever again: the run goes on and ends as ever,
/// uses no CPU for them, and drops them.
#[test]
fn clients_that_are_slow_do_not_stall_a_run() {
    let place = Place::new();
    let run = place.start(&[]);
    let connect = || UnixStream::connect(place.socket(&run)).unwrap();
    let mut slow: Vec<UnixStream> = (0..8).map(|_| connect()).collect();
    slow[0].write_all(b"{\"version\":1,").unwrap();
    let started = Instant::now();
    let status = place.status(&run.pid.to_string());
    assert_line(&status, 1, &["too many clients", "try again later"]);
    let before = cpu_ticks(run.pid);
    // The ninth can come when they have been dropped.
    let output = eventually("a free place", || {
        thread::sleep(Duration::from_millis(200));
        let output = place.status(&run.pid.to_string());
        (output.end() == 0).then_some(output)
    });
    assert!(output.stdout.contains("sleep 60"), "{output:?}");
    assert!(started.elapsed() > Duration::from_secs(4), "they were dropped too soon");
    let ticks = cpu_ticks(run.pid) - before;
    assert!(ticks < 100, "{ticks} ticks of CPU for clients that did nothing");
    let mut nothing = [0; 1];
    assert_eq!(slow[0].read(&mut nothing).unwrap(), 0);
    let waiting: Vec<UnixStream> = (0..20).map(|_| connect()).collect();
    let ending = Instant::now();
    assert_eq!(run.end().end(), -libc::SIGTERM);
    assert!(ending.elapsed() < Duration::from_secs(3), "its end took {:?}", ending.elapsed());
    drop(waiting);
}

fn limit_descriptors(pid: u32, limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: 4096 };
    // SAFETY: a structure that is only read.
    let set = unsafe {
        libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut())
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// A client that cannot be let in is not asked in all the time.
#[test]
fn a_run_without_descriptors_does_not_spin() {
    if !is_root() {
        return skip(
            "a_run_without_descriptors_does_not_spin",
            "it changes another process's limit",
        );
    }
    let place = Place::new();
    let run = place.start(&[]);
    limit_descriptors(run.pid, 3);
    let waiting = UnixStream::connect(place.socket(&run)).unwrap();
    let before = cpu_ticks(run.pid);
    thread::sleep(Duration::from_millis(1500));
    let ticks = cpu_ticks(run.pid) - before;
    assert!(ticks < 30, "{ticks} ticks of CPU in 1.5 s");
    limit_descriptors(run.pid, 1024);
    drop(waiting);
    assert_eq!(place.json(&run.pid.to_string())["pid"], run.pid);
}

/// A client that asks and does not read: the answer waits for it, the run does not.
#[test]
fn a_client_that_does_not_read_is_dropped() {
    let place = Place::new();
    let run = place.start(&[]);
    let mut streams: Vec<UnixStream> = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(place.socket(&run)).unwrap();
        stream.write_all(b"{\"version\":1,\"request\":\"status\"}\n").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        streams.push(stream);
    }
    // They have their answers in their sockets, and no place any more.
    assert_eq!(place.json(&run.pid.to_string())["pid"], run.pid);
    assert!(first_line(&streams[7]).starts_with("{\"status\":"));
}

/// Where no directory can be had, a run goes on without.
#[test]
fn a_run_without_a_place_goes_on() {
    // A user without runs in other tests, which would have made the place.
    const USER: u32 = 64999;
    let taken = Path::new("/tmp/vswap-run-64999");
    if !is_root() || Path::new("/run/vswap-64999").exists() {
        return skip(
            "a_run_without_a_place_goes_on",
            "only root can take the place of another user",
        );
    }
    let directory = tempfile::tempdir().unwrap();
    set_mode(directory.path(), 0o755);
    let copy = directory.path().join("vswap").to_str().unwrap().to_owned();
    finish(&mut command("cp", &[env!("CARGO_BIN_EXE_vswap"), &copy]));
    // Somebody else's, as another user could make it.
    let _ = std::fs::remove_dir(taken);
    std::fs::create_dir(taken).unwrap();
    let run = |options: &[&str]| {
        let words = [&["run", "--engine", "inline", "--ram", "64M"], options, &["echo", "ran"]];
        let mut command = command(&copy, &words.concat());
        finish(command.uid(USER).gid(USER).current_dir("/").env_remove("XDG_RUNTIME_DIR"))
    };
    let (quiet, verbose) = (run(&["--name", "nowhere"]), run(&["-v"]));
    std::fs::remove_dir(taken).unwrap();
    assert_eq!((quiet.end(), quiet.stdout.as_str(), quiet.stderr.as_str()), (0, "ran\n", ""));
    assert!(verbose.stderr.contains("no control socket"), "{verbose:?}");
    assert!(
        verbose.stderr.contains("/tmp/vswap-run-64999: belongs to another user"),
        "{verbose:?}"
    );
}
