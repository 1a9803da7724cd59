//! Pages as programs have them.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use vswap_core::{PAGE_SIZE, Page};

/// Pages of one kind.
pub struct Corpus {
    pub name: &'static str,
    pub pages: Vec<Page>,
}

/// Machine code and text of this system, and the heap of a running Python, `len` bytes of each at
/// most.
pub fn from_system(len: usize) -> Vec<Corpus> {
    let mut corpora = Vec::new();
    for (name, root, extension) in [("elf", "/usr/lib", "so"), ("text", "/usr/lib", "py")] {
        let mut bytes = Vec::new();
        read_files(Path::new(root), extension, &mut bytes, len);
        corpora.push(Corpus { name, pages: pages(&bytes) });
    }
    match python_heap(len) {
        Some(bytes) => corpora.push(Corpus { name: "heap", pages: pages(&bytes) }),
        None => eprintln!("skipped: no python3 to take a heap from"),
    }
    corpora
}

fn pages(bytes: &[u8]) -> Vec<Page> {
    bytes.as_chunks::<PAGE_SIZE>().0.iter().map(|chunk| Page(*chunk)).collect()
}

fn read_files(directory: &Path, extension: &str, into: &mut Vec<u8>, len: usize) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            read_files(&path, extension, into, len);
        } else if metadata.is_file()
            && path.to_string_lossy().contains(&format!(".{extension}"))
            && let Ok(file) = File::open(&path)
            && into.len() < len
        {
            let rest = (len - into.len()) as u64;
            let _ = file.take(rest.min(1 << 20)).read_to_end(into);
        }
    }
}

/// Resident anonymous pages of a Python that built what programs build.
fn python_heap(len: usize) -> Option<Vec<u8>> {
    const PROGRAM: &str = r"
import json, sys, random
random.seed(7)
data = {('key%d' % i): [i, str(i * 7), {'n': i / 3, 'name': 'item-%d' % (i % 977)}] for i in range(120000)}
text = json.dumps(data)
numbers = [random.random() for _ in range(400000)]
words = set(str(random.getrandbits(64)) for _ in range(100000))
out, left = sys.stdout.buffer, int(sys.argv[1])
with open('/proc/self/mem', 'rb', 0) as mem:
    for line in open('/proc/self/maps').read().splitlines():
        part = line.split()
        if part[1] != 'rw-p' or (len(part) > 5 and part[5] != '[heap]'):
            continue
        start, end = (int(x, 16) for x in part[0].split('-'))
        for at in range(start, end, 1 << 20):
            try:
                mem.seek(at)
                chunk = mem.read(min(1 << 20, end - at, left))
            except OSError:
                break
            left -= out.write(chunk)
            if left <= 0:
                sys.exit()
";
    let output = Command::new("python3").args(["-c", PROGRAM, &len.to_string()]).output().ok()?;
    output.status.success().then_some(output.stdout)
}
