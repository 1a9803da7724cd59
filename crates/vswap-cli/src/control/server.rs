//! The run's end of its control socket.
//!
//! [`Control::serve`] is called whenever the coordinator is awake. What it does is bounded: it takes
//! in a few clients, reads once from each, writes what their sockets hold, and looks once at the
//! operation that is under way.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags, accept_with, send, sockopt};
use rustix::process::{Uid, geteuid};

use super::connection::{Connection, Event};
use super::place::Published;
use super::protocol::{Reply, Request};
use super::requests::{Began, Operation, Step, Subject, begin};

/// Clients at one time.
const CONNECTIONS_MAX: usize = 8;

/// How often the clock of clients is looked at.
const CLIENT_TICK: Duration = Duration::from_millis(500);

/// How often an operation is looked at.
const OPERATION_TICK: Duration = Duration::from_millis(20);

/// The socket, its clients, and the operation of one of them.
pub struct Control {
    published: Published,
    connections: Vec<(ClientId, Connection)>,
    last: ClientId,
    operation: Option<(ClientId, Operation)>,
    /// Nobody could be let in, for want of descriptors: who waits is not to wake us all the time.
    deaf: bool,
}

/// A client, for as long as it is connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ClientId(u64);

impl Control {
    /// With the socket that clients find.
    pub fn new(published: Published) -> Self {
        Self {
            published,
            connections: Vec::new(),
            last: ClientId::default(),
            operation: None,
            deaf: false,
        }
    }

    /// Descriptors to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = PollFd<'_>> {
        let clients = self.connections.iter().map(|(_, c)| PollFd::new(c.socket(), c.interest()));
        let door = (!self.deaf).then(|| PollFd::new(&self.published.listener, PollFlags::IN));
        door.into_iter().chain(clients)
    }

    /// How long [`serve`](Self::serve) can wait if nothing arrives.
    pub fn patience(&self) -> Option<Duration> {
        match (&self.operation, self.connections.is_empty() && !self.deaf) {
            (Some(_), _) => Some(OPERATION_TICK),
            (None, false) => Some(CLIENT_TICK),
            (None, true) => None,
        }
    }

    /// Does what there is to do, without waiting.
    pub fn serve(&mut self, subject: &mut Subject<'_>) {
        self.accept();
        for index in 0..self.connections.len() {
            let (id, connection) = &mut self.connections[index];
            let id = *id;
            match connection.serve() {
                Event::None => {}
                Event::Request(line) => self.begin(index, &line, subject),
                Event::Interrupt => {
                    if let Some(reply) = self.cancel(id, subject) {
                        self.connections[index].1.finish(&reply);
                    }
                }
            }
        }
        self.advance(subject);
        for (id, _) in self.connections.extract_if(.., |(_, c)| c.is_over()).collect::<Vec<_>>() {
            self.cancel(id, subject);
        }
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        self.deaf = false;
        for _ in 0..CONNECTIONS_MAX {
            let socket = match accept_with(&self.published.listener, flags) {
                Ok(socket) => socket,
                Err(error) => {
                    self.deaf = error != Errno::AGAIN;
                    return;
                }
            };
            let refused = match sockopt::socket_peercred(&socket) {
                Ok(peer) if !may_connect(peer.uid) => {
                    Reply::refused("this run belongs to another user", "become that user, or root")
                }
                Ok(_) if self.connections.len() < CONNECTIONS_MAX => {
                    self.last.0 += 1;
                    self.connections.push((self.last, Connection::new(socket)));
                    continue;
                }
                Ok(_) => Reply::refused("this run has too many clients", "try again later"),
                Err(_) => continue,
            };
            turn_away(&socket, &refused);
        }
    }

    fn begin(&mut self, index: usize, line: &[u8], subject: &mut Subject<'_>) {
        let (id, connection) = &mut self.connections[index];
        let began = match Request::parse(line) {
            Ok(request) => begin(&request, subject, self.operation.is_some()),
            Err(reply) => Began::Done(reply),
        };
        match began {
            Began::Done(reply) => connection.finish(&reply),
            Began::Operation(operation) => {
                connection.wait();
                self.operation = Some((*id, operation));
            }
        }
    }

    fn advance(&mut self, subject: &mut Subject<'_>) {
        let Some((id, operation)) = &mut self.operation else { return };
        let id = *id;
        let step = operation.advance(subject);
        if let Some((_, connection)) = self.connections.iter_mut().find(|(client, _)| *client == id)
        {
            match &step {
                Step::Working(progress) => connection.tell(progress),
                Step::Finished(reply) => connection.finish(reply),
            }
        }
        if matches!(step, Step::Finished(_)) {
            self.operation = None;
        }
    }

    /// Takes the operation of a client back; what was done by then.
    fn cancel(&mut self, client: ClientId, subject: &mut Subject<'_>) -> Option<Reply> {
        let (_, operation) = self.operation.take_if(|(id, _)| *id == client)?;
        Some(operation.cancel(subject))
    }
}

/// The same user, or root, who could do anything to the run anyway.
fn may_connect(user: Uid) -> bool {
    user == geteuid() || user.is_root()
}

/// Says why and closes. A socket just accepted has room for a line.
fn turn_away(socket: &OwnedFd, refused: &Reply) {
    let _ = send(socket, &refused.to_line(), SendFlags::NOSIGNAL);
}
