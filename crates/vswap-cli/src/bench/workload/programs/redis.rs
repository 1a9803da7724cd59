//! A server with its clients: redis-server filled with keys, then asked for them by clients that each
//! wait for an answer before they ask again (a closed loop).
//!
//! Keys are chosen by a zipf law of 0.99; of ten requests nine read and one writes the same value once more.
//! Every value that comes back is checked.

use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::super::super::contents::{Contents, Random};
use super::super::latency::Latencies;
use super::super::zipf::Zipf;
use super::{Killed, Program, Ran};

/// Words of a value: 1000 bytes, which with their header fill a class of the server's allocator.
const VALUE_WORDS: usize = 125;
/// A value with its key and their places, as measured with redis 7.0.
const BYTES_PER_KEY: usize = 1230;
/// Requests that are sent at once while the server is filled.
const PIPELINED: usize = 64;
/// How long the server may take to answer at all. On a busy machine that is long.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Fills a server with about so many bytes, then measures as many requests as a random pattern has
/// accesses.
pub fn run(program: &Program<'_>) -> io::Result<Ran> {
    let socket = program.scratch.join("redis");
    let mut server = Killed(start(program.scratch, &socket)?);
    let mut first = Client::connect(&socket, &mut server.0)?;
    let keys = (program.bytes / BYTES_PER_KEY).max(1);
    first.fill(program.contents, keys)?;
    let mut clients = vec![first];
    while clients.len() < program.threads {
        clients.push(Client::connect(&socket, &mut server.0)?);
    }
    let each = program.accesses / program.threads;
    let start = Instant::now();
    let latencies = std::thread::scope(|scope| {
        let running: Vec<_> = (0..)
            .zip(&mut clients)
            .map(|(number, client)| {
                scope.spawn(move || client.ask_again(program.contents, keys, each, number))
            })
            .collect();
        let mut all = Latencies::default();
        for client in running {
            all.add(&client.join().expect("no panics")?);
        }
        Ok::<_, io::Error>(all)
    })?;
    let time = start.elapsed();
    clients[0].shut_down()?;
    let status = server.0.wait()?;
    if !status.success() {
        return Err(io::Error::other(format!("it ended with {status}")));
    }
    Ok(Ran { time, accesses: each * program.threads, latencies: Some(latencies) })
}

fn start(directory: &Path, socket: &Path) -> io::Result<Child> {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
    command.arg(socket).arg("--dir").arg(directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// One connection.
struct Client {
    answers: BufReader<UnixStream>,
    requests: BufWriter<UnixStream>,
}

impl Client {
    fn connect(socket: &Path, server: &mut Child) -> io::Result<Self> {
        let deadline = Instant::now() + STARTS_WITHIN;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => {
                    let answers = BufReader::new(stream.try_clone()?);
                    return Ok(Self { answers, requests: BufWriter::new(stream) });
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => {}
            }
            if let Some(status) = server.try_wait()? {
                return Err(io::Error::other(format!("it did not start: {status}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn fill(&mut self, contents: &Contents, keys: usize) -> io::Result<()> {
        let mut sent = 0;
        while sent < keys {
            let batch = PIPELINED.min(keys - sent);
            for key in sent..sent + batch {
                self.send_set(contents, key)?;
            }
            self.requests.flush()?;
            for _ in 0..batch {
                self.expect_ok()?;
            }
            sent += batch;
        }
        Ok(())
    }

    /// Asks so many times, and gives how long each answer took.
    fn ask_again(
        &mut self,
        contents: &Contents,
        keys: usize,
        requests: usize,
        client: u64,
    ) -> io::Result<Latencies> {
        let (mut random, zipf) = (Random::new(0x5EED_0010 + client), Zipf::new(keys));
        let mut latencies = Latencies::default();
        for _ in 0..requests {
            let key = zipf.next(&mut random);
            let writes = random.below(10) == 0;
            let start = Instant::now();
            if writes {
                self.send_set(contents, key)?;
                self.requests.flush()?;
                self.expect_ok()?;
            } else {
                self.get(contents, key)?;
            }
            latencies.record(start.elapsed().as_nanos() as u64);
        }
        Ok(latencies)
    }

    fn send_set(&mut self, contents: &Contents, key: usize) -> io::Result<()> {
        let mut value = [0; VALUE_WORDS];
        contents.fill(&mut value, key as u64);
        let length = VALUE_WORDS * 8;
        write!(self.requests, "*3\r\n$3\r\nSET\r\n$12\r\n{key:012}\r\n${length}\r\n")?;
        for word in value {
            self.requests.write_all(&word.to_ne_bytes())?;
        }
        self.requests.write_all(b"\r\n")
    }

    fn get(&mut self, contents: &Contents, key: usize) -> io::Result<()> {
        write!(self.requests, "*2\r\n$3\r\nGET\r\n$12\r\n{key:012}\r\n")?;
        self.requests.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.trim_end() != format!("${}", VALUE_WORDS * 8) {
            return Err(io::Error::other(format!("to GET it said {line:?}")));
        }
        let mut bytes = [0; VALUE_WORDS * 8 + 2];
        self.answers.read_exact(&mut bytes)?;
        let (words, _end) = bytes.as_chunks();
        let mut value = [0; VALUE_WORDS];
        for (word, bytes) in value.iter_mut().zip(words) {
            *word = u64::from_ne_bytes(*bytes);
        }
        contents.check(&value, key as u64, 0).map_err(io::Error::other)
    }

    fn expect_ok(&mut self) -> io::Result<()> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line == "+OK\r\n" {
            return Ok(());
        }
        Err(io::Error::other(format!("to SET it said {line:?}")))
    }

    fn shut_down(&mut self) -> io::Result<()> {
        self.requests.write_all(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")?;
        self.requests.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::contents::Mix;
    use super::*;

    /// A client, and what stands for the server.
    fn pair() -> (Client, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let answers = BufReader::new(ours.try_clone().unwrap());
        (Client { answers, requests: BufWriter::new(ours) }, theirs)
    }

    #[test]
    fn requests_are_what_the_protocol_has() {
        let contents = Contents::new(Mix::Heap);
        let (mut client, mut server) = pair();
        client.send_set(&contents, 7).unwrap();
        client.requests.flush().unwrap();
        drop(client);
        let mut request = Vec::new();
        server.read_to_end(&mut request).unwrap();
        let head = b"*3\r\n$3\r\nSET\r\n$12\r\n000000000007\r\n$1000\r\n";
        assert!(request.starts_with(head));
        assert_eq!(request.len(), head.len() + 1000 + 2);
        assert!(request.ends_with(b"\r\n"));
    }

    #[test]
    fn a_wrong_value_and_an_error_are_noticed() {
        let contents = Contents::new(Mix::Heap);
        let answer = |key| {
            let mut value = [0; VALUE_WORDS];
            contents.fill(&mut value, key);
            let bytes: Vec<u8> = value.iter().flat_map(|word| word.to_ne_bytes()).collect();
            [&b"$1000\r\n"[..], &bytes, b"\r\n"].concat()
        };
        let (mut client, mut server) = pair();
        server.write_all(&answer(7)).unwrap();
        client.get(&contents, 7).unwrap();
        server.write_all(&answer(8)).unwrap();
        client.get(&contents, 7).unwrap_err();
        server.write_all(b"$-1\r\n-OOM command not allowed\r\n").unwrap();
        client.get(&contents, 7).unwrap_err();
        client.expect_ok().unwrap_err();
    }
}
