//! `vswap core-fix`: puts the pages into a core dump that were swapped out when it was written.
//!
//! The kernel cannot read them, so the pager of a program that left a core writes them to a file
//! (`vswap_pager::core_dump`) at a [`place`] that follows from what the core itself says: its process ID
//! and the random bytes of its exec. When all are in the core the file is removed.

mod core_file;
pub mod place;

use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use vswap_core::codec::Lz4;
use vswap_core::{PAGE_SIZE, Page};
use vswap_pager::pages_file::{Head, Header, Identity};

use self::core_file::CoreFile;
use crate::args::CoreFixArgs;
use crate::refusal::{Refusal, reason};

/// How long a pager may take to see that its program has ended.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// A core older than that has its pages, or will never have them.
const FRESH: Duration = Duration::from_secs(10);

/// What became of the pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Done {
    /// In the core now.
    put: u64,
    /// Of memory that the kernel was told to leave out.
    left_out: u64,
}

/// Fixes the core of the command line.
pub fn run(args: &CoreFixArgs) -> anyhow::Result<ExitCode> {
    let name = args.core.display();
    let mut core = CoreFile::open(&args.core).map_err(|error| {
        let what = format!("{name}: {}", describe(&error));
        Refusal::usage(what, "name the file that the kernel has written")
    })?;
    let (path, file) = pages_of(args, core.identity)?;
    let done = put_all(file, &mut core).with_context(|| format!("{}", path.display()))?;
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    println!("{name}: {} pages put in", done.put);
    if done.left_out > 0 {
        println!(
            "{} pages are of memory that is not in the core (see coredump_filter in core(5))",
            done.left_out
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The file with the pages, open. It is made a moment after the core, which the program's parent may be
/// faster than.
fn pages_of(args: &CoreFixArgs, identity: Identity) -> Result<(PathBuf, File), Refusal> {
    let paths = match &args.pages {
        Some(path) => vec![path.clone()],
        None => place::candidates(identity),
    };
    let deadline = Instant::now() + if is_fresh(&args.core) { PATIENCE } else { Duration::ZERO };
    loop {
        for path in &paths {
            match place::open(path) {
                Ok(file) => return Ok((path.clone(), file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let what = format!("{}: {}", path.display(), reason(error));
                    return Err(Refusal::usage(what, "run it as the user who ran the program"));
                }
            }
        }
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(PAUSE);
    }
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let what = format!("no pages for process {} ({})", identity.pid, paths.join(", "));
    Err(Refusal::usage(what, "nothing of it was swapped out, or the core is complete already"))
}

/// Whether a core was written just now.
fn is_fresh(core: &Path) -> bool {
    let age = core.metadata().and_then(|found| found.modified()).map(|time| time.elapsed());
    !matches!(age, Ok(Ok(age)) if age > FRESH)
}

/// Puts each page of a file into the core.
fn put_all(file: File, core: &mut CoreFile) -> anyhow::Result<Done> {
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut header = [0; Header::SIZE];
    file.read_exact(&mut header).context("is no file of pages")?;
    let Header(identity) = Header::from_bytes(&header).context("is no file of pages")?;
    anyhow::ensure!(identity == core.identity, "has the pages of another program");
    let mut done = Done::default();
    let (mut page, mut bytes) = (Box::new(Page::ZERO), [0; PAGE_SIZE]);
    loop {
        let mut head = [0; Head::SIZE];
        file.read_exact(&mut head).context("is cut off")?;
        let Some(head) = Head::from_bytes(head) else { break };
        let bytes = bytes.get_mut(..head.length).context("is damaged")?;
        file.read_exact(bytes).context("is cut off")?;
        if head.length == PAGE_SIZE {
            page.0.copy_from_slice(bytes);
        } else {
            Lz4::restore(bytes, &mut page).context("is damaged")?;
        }
        if core.put(head.page as u64 * PAGE_SIZE as u64, &page.0)? {
            done.put += 1;
        } else {
            done.left_out += 1;
        }
    }
    core.sync()?;
    Ok(done)
}

fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => error
            .raw_os_error()
            .map_or_else(|| error.to_string(), |code| reason(io::Error::from_raw_os_error(code))),
        None => format!("{error:#}"),
    }
}
