//! Servers and databases.

use super::{Row, Scratch, shell};
use crate::support::stats::Stats;
use crate::support::{Job, Vswap, is_root};

/// `$1`: a directory, `$2`: how many keys. Everything that it prints is the same in each run.
const REDIS: &str = r#"
set -e
directory=$1
cd "$1"
redis-server --port 0 --unixsocket "$1/s" --save '' --appendonly no --dir "$1" \
    --enable-debug-command yes >log &
server=$!
trap 'kill $server 2>/dev/null' EXIT
ask() { redis-cli -s "$directory/s" "$@"; }
tries=0
until ask ping >/dev/null 2>&1; do tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1; done
ask debug populate "$2" key 400
ask debug digest
redis-benchmark -s "$1/s" -q -t set,get,lpush -n 10000 -r 1000 -c 10 -d 200 >/dev/null &
load=$!
ask bgsave
saving() { ask info persistence | grep -q rdb_bgsave_in_progress:1; }
while saving; do sleep 0.2; done
ask info persistence | grep rdb_last_bgsave_status
wait $load
ask del mylist key:__rand_int__ >/dev/null
ask eval "for i = 0, 999 do redis.call('del', string.format('key:%012d', i)) end return 1" 0
ask debug digest
ask debug reload
ask debug digest
ask dbsize
ask shutdown nosave || true
wait $server || true
trap - EXIT
"#;

/// Its pages are shared with the child that saves them while the load writes to them.
#[test]
fn redis() {
    const WHAT: &str =
        "keys of 400 bytes; BGSAVE under redis-benchmark, DEBUG RELOAD, DEBUG DIGEST";
    let version = ["redis-server", "--version"];
    let Some(row) = Row::of("redis-server", WHAT, &version) else { return };
    let keys = if crate::support::long() { "360000" } else { "180000" };
    let ram = if crate::support::long() { "48M" } else { "26M" };
    // The path of a socket has at most 107 bytes, so not below the target directory. One for each
    // run: a server loads what an earlier one has saved.
    let directory = |run: &str| {
        let name = format!("vswap-redis.{}.{run}", std::process::id());
        let directory = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir(&directory.0).expect("a directory");
        directory
    };
    let (first, second) = (directory("plain"), directory("paged"));
    let job = |directory: &Scratch| shell(REDIS, &[directory.path(), keys]).limit(400);
    let vswap = Vswap::ram(ram);
    let (plain, paged) = (job(&first).plain(), job(&second).under(&vswap));
    row.record(&plain, &vswap.budget(), &paged);
}

/// As nobody, since the server refuses root. `$1`: a directory of nobody's, `$2`: the server's
/// programs.
const POSTGRES: &str = r#"
set -e
cd "$1"
"$2/initdb" -D "$1/data" -A trust -U user --no-sync >/dev/null
"$2/pg_ctl" -D "$1/data" -w -l "$1/log" -o "-k $1 -c listen_addresses='' -c fsync=off \
  -c work_mem=200MB -c shared_buffers=16MB -c max_parallel_workers_per_gather=0" start >/dev/null
ask() { "$2/psql" -h "$1" -U user -d postgres -Atc "$3"; }
ask "$1" "$2" "create table t as select i as id, (i * 7919::bigint) % 300000 as k,
  'row number ' || i as name from generate_series(1, 300000) i"
ask "$1" "$2" "create index on t(k)"
ask "$1" "$2" "select count(*), sum(k), md5(string_agg(name, ',' order by k desc)) from t"
ask "$1" "$2" "select sum(c), max(m) from
  (select name, count(*) c, max(k) m from t group by name) x"
ask "$1" "$2" "select count(*) from t a join t b on a.id = b.k"
"$2/pg_ctl" -D "$1/data" -w -m fast stop >/dev/null
"#;

#[test]
fn postgres() {
    const WHAT: &str = "initdb, start, load, index, aggregates, a join, stop";
    const AS_NOBODY: &str = r#"
chmod 755 "$1" && mkdir "$1/home" && chown nobody "$1/home" &&
mknod -m 666 "$1/uffd" c 10 257 && mount --bind "$1/uffd" /dev/userfaultfd && cd / &&
exec setpriv --reuid 65534 --regid 65534 --clear-groups $4 sh -c "$3" sh "$1/home" "$2"
"#;
    let programs = "/usr/lib/postgresql/15/bin";
    let version = format!("{programs}/postgres");
    let Some(row) = Row::of("PostgreSQL", WHAT, &[&version, "--version"]) else { return };
    if !is_root() {
        row.not_run("it needs root, to become nobody");
        return;
    }
    // vswap is nobody's, too: the coordinator takes no members of another user.
    let run = |budget: Option<&str>| {
        let number = u32::from(budget.is_some());
        let name = format!("vswap-postgres.{}.{number}", std::process::id());
        let directory = Scratch(std::env::temp_dir().join(name));
        std::fs::create_dir(&directory.0).expect("a directory");
        let vswap = directory.0.join("vswap");
        std::fs::copy(env!("CARGO_BIN_EXE_vswap"), &vswap).expect("a copy of vswap");
        let (path, stats) = (directory.path(), directory.0.join("home/stats"));
        let before = budget.map_or_else(String::new, |ram| {
            format!("{path}/vswap run --ram {ram} --swap {path}/home --stats {path}/home/stats --")
        });
        let line = ["-m", "sh", "-c", AS_NOBODY, "sh", path, programs, POSTGRES, &before];
        let mut outcome = Job::new("unshare", &line).limit(180).plain();
        outcome.stats = std::fs::read_to_string(stats).ok().map(|text| Stats::parse(&text));
        outcome
    };
    let (plain, paged) = (run(None), run(Some("32M")));
    row.record(&plain, "32M and a swap file", &paged);
}

const SQL: &str = "
CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER, name TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200000)
INSERT INTO item SELECT i, i * 7919 % 20000 + 1, printf('item %d of its owner', i * 31) FROM n;
CREATE INDEX item_owner ON item(owner);
SELECT count(*), sum(length(name) * owner), max(name) FROM item WHERE owner % 3 = 1;
SELECT sum(c * 31 + owner) FROM (SELECT owner, count(*) AS c FROM item GROUP BY owner);
PRAGMA integrity_check;
";

#[test]
fn sqlite() {
    const WHAT: &str = "a table with an index in memory, read and checked";
    let Some(row) = Row::of("sqlite3", WHAT, &["sqlite3", "--version"]) else { return };
    let job = Job::new("sqlite3", &["-batch", ":memory:"]).stdin(SQL);
    row.measure(&job, &Vswap::ram("24M").swap("1G"));
}
