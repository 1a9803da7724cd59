//! Runtimes, compilers and shells.

use super::{Row, Scratch, shell};
use crate::support::{Job, Vswap};

const NODE: &str = r"
const n = Number(process.argv[2]);
const rows = [];
for (let i = 0; i < n; i++)
  rows.push({ id: i, name: 'row number ' + i, next: (i * 7919) % n, tags: [i % 7, i % 11] });
let at = 0, sum = 0;
for (let k = 0; k < n / 10; k++) {
  const row = rows[at];
  sum = (sum * 31 + row.name.length + row.tags[0] + row.id) % 1000003;
  at = (row.next + 1) % n;
}
for (let i = 0; i < n; i++)
  if (rows[i].name !== 'row number ' + i) throw new Error('wrong row ' + i);
const numbers = new Float64Array(n * 16);
for (let i = 0; i < numbers.length; i++) numbers[i] = i * 0.5;
let total = 0;
for (let i = 0; i < numbers.length; i += 3) total += numbers[i];
console.log(n, sum, total);
";

#[test]
fn node() {
    const WHAT: &str = "arrays of objects and of numbers, verified";
    let Some(row) = Row::of("node", WHAT, &["node", "--version"]) else { return };
    let script = Scratch::file("js", NODE);
    row.measure(&Job::new("node", &[script.path(), "200000"]), &Vswap::ram("40M").swap("1G"));
}

const JAVA: &str = r#"
import java.util.HashMap;

public class Heap {
  public static void main(String[] arguments) throws Exception {
    int n = Integer.parseInt(arguments[0]);
    HashMap<String, long[]> map = new HashMap<>();
    for (int i = 0; i < n; i++)
      map.put("key " + i, new long[] {i, i * 7919L % n, 3, 4, 5, 6, 7, 8});
    long sum = 0;
    for (int k = 0, at = 0; k < n / 10; k++) {
      long[] value = map.get("key " + at);
      if (value[0] != at) throw new Exception("wrong value at " + at);
      sum = (sum * 31 + value[1]) % 1000003;
      at = (int) ((value[1] + 1) % n);
    }
    Thread[] threads = new Thread[2];
    long[] sums = new long[threads.length];
    for (int t = 0; t < threads.length; t++) {
      final int first = t;
      threads[t] = new Thread(() -> {
        for (int i = first; i < n; i += 10) sums[first] += map.get("key " + i)[1];
      });
      threads[t].start();
    }
    for (Thread thread : threads) thread.join();
    System.out.println(n + " " + sum + " " + sums[0] + " " + sums[1]);
  }
}
"#;

fn java(name: &'static str, options: &[&str]) {
    const WHAT: &str = "a map of strings to arrays, verified by three threads";
    let Some(row) = Row::of(name, WHAT, &["java", "--version"]) else { return };
    let directory = Scratch::directory();
    let source = directory.0.join("Heap.java");
    std::fs::write(&source, JAVA).expect("a file for the program");
    let source = source.to_str().expect("a target directory with a plain name");
    // Compiled by itself: with only a runtime installed, java has no compiler either.
    let compiled = Job::new("javac", &["-d", directory.path(), source]);
    if std::process::Command::new("javac").arg("--version").output().is_err() {
        row.not_run("javac is not installed");
        return;
    }
    assert!(compiled.plain().status.success(), "javac failed");
    let mut line = vec!["-Xmx256m", "-Xshare:auto"];
    line.extend(options);
    line.extend(["-cp", directory.path(), "Heap", "400000"]);
    row.measure(&Job::new("java", &line), &Vswap::ram("48M").swap("1G"));
}

#[test]
fn java_with_the_serial_collector() {
    java("OpenJDK, serial collector", &["-XX:+UseSerialGC"]);
}

#[test]
fn java_with_the_default_collector() {
    java("OpenJDK, default collector", &[]);
}

const MULTIPROCESSING: &str = r"
import hashlib, multiprocessing, sys

data = None

def make(n):
    return ['row %d of the table' % i for i in range(n)]

def begin(n):
    global data
    if data is None:
        data = make(n)

def work(k):
    digest = hashlib.md5()
    for i in range(k, len(data), 8):
        digest.update(data[i].encode())
    return digest.hexdigest()

if __name__ == '__main__':
    context, n = multiprocessing.get_context(sys.argv[1]), int(sys.argv[2])
    if sys.argv[1] == 'fork':
        data = make(n)
    with context.Pool(3, initializer=begin, initargs=(n,)) as pool:
        print(sys.argv[1], pool.map(work, range(8), chunksize=1))
";

fn multiprocessing(name: &'static str, what: &'static str, method: &str, rows: &str, ram: &str) {
    let Some(row) = Row::of(name, what, &["python3", "--version"]) else { return };
    let script = Scratch::file("py", MULTIPROCESSING);
    row.measure(&Job::new("python3", &[script.path(), method, rows]), &Vswap::ram(ram));
}

#[test]
fn python_forks() {
    let what = "3 workers read what their parent made before the fork";
    multiprocessing("python multiprocessing, fork", what, "fork", "1200000", "40M");
}

#[test]
fn python_spawns() {
    let what = "3 workers make the same data and read it";
    multiprocessing("python multiprocessing, spawn", what, "spawn", "500000", "56M");
}

/// Writes 110 files of C, which take 14 MiB each to compile beside what the compiler maps, builds
/// them with three processes at a time, and digests what came out.
const BUILD: &str = r#"
cd "$1" || exit 1
awk 'BEGIN { for (j = 0; j < 60000; j++) printf "%d,", j * j % 1009 }' >numbers.h
i=0
while [ $i -lt 110 ]; do
  for k in 1 2; do
    printf 'static int t%d[] = {\n#include "numbers.h"\n%d };\n' $k $i
    printf 'int f%d_%d(int x) { for (int j = 0; j < 60000; j++) ' $i $k
    printf 'x = x * 31 + t%d[j] ^ (x >> 3); return x; }\n' $k
  done >f$i.c
  i=$((i + 1))
done
make -s -f "$2" -j3 all || exit 1
cat *.o | md5sum
ls *.o | wc -l
"#;

const MAKEFILE: &str = "all: $(patsubst %.c,%.o,$(wildcard *.c))
%.o: %.c
\tgcc -O1 -c $< -o $@
";

#[test]
fn a_parallel_build() {
    const WHAT: &str = "make -j3 of 110 files, the same object files";
    let Some(row) = Row::of("make and gcc", WHAT, &["gcc", "--version"]) else { return };
    if std::process::Command::new("make").arg("--version").output().is_err() {
        row.not_run("make is not installed");
        return;
    }
    let makefile = Scratch::file("mk", MAKEFILE);
    let (plain, paged) = (Scratch::directory(), Scratch::directory());
    let job = |directory: &Scratch| shell(BUILD, &[directory.path(), makefile.path()]).limit(240);
    let plain = job(&plain).plain();
    let paged = job(&paged).under(&Vswap::ram("24M").swap("1G"));
    row.record(&plain, "24M and a swap file of 1G", &paged);
}

const PIPELINES: &str = r#"
numbers() { seq "$1" "$2" 1200000; }
{ numbers 1 2 | sort -S 200M -n -r | md5sum; } >"$1/a" &
first=$!
{ { numbers 2 2; numbers 1 3; } | awk '{ seen[$1 % 90000] = seen[$1 % 90000] " " $1 }
  END { for (i = 0; i < 90000; i++) print seen[i] }' | (md5sum; exit 3); } >"$1/b" &
second=$!
trap 'echo trapped' USR1
sh -c 'kill -USR1 $PPID'
wait $first && wait $second
echo "$?" "$(cat "$1/a" "$1/b")" "$(numbers 1 5 | (read x; echo $x; tail -n 1) | tr '\n' ' ')"
"#;

#[test]
fn a_shell_script() {
    const WHAT: &str = "background jobs, nested pipelines and traps around sort and awk";
    let directory = Scratch::directory();
    let row = Row::own("sh", WHAT);
    row.measure(&shell(PIPELINES, &[directory.path()]), &Vswap::ram("32M").swap("1G"));
}
