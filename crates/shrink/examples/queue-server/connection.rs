//! One connection: reads, has commands carried out, writes; and shrinks what it owns, on its own task.
//!
//! Invariants: buffers are taken from the pool only while there is something in them; no more is read than is served
//! (what comes behind a blocking command, up to a limit); a client that does not read, or does not finish its request,
//! is waited for so long and no longer, and one that never stops sending keeps nobody else waiting.

use crate::commands::{self, Args};
use crate::resp::{self, Wrong};
use crate::server::{Buffers, KEEP, Server};
use crate::session::{Blocked, Next, Session};
use ebbtide_shrink::pool::Guard;
use ebbtide_shrink::{Bytes, Cascade, Member, Shrink};
use rustix::net::{RecvFlags, recv};
use std::future::pending;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::task::yield_now;
use tokio::time::{sleep, sleep_until, timeout};

/// Room for one read.
const READ: usize = 64 << 10;
/// Replies are sent when they are so large, or when there is no request left.
const SEND: usize = 64 << 10;
/// What a client may send behind a blocking command.
const BEHIND: usize = 1 << 20;

/// What its member shrinks.
#[derive(Shrink)]
struct Own {
    session: Session,
    #[shrink(with = shrink_buffers, slack = slack_of_buffers)]
    buffers: Option<Guard<Buffers>>,
}

fn shrink_buffers(buffers: &mut Option<Guard<Buffers>>, cascade: &mut Cascade<'_>) {
    if let Some(buffers) = buffers {
        buffers.shrink(cascade);
    }
}

fn slack_of_buffers(buffers: &Option<Guard<Buffers>>) -> Bytes {
    buffers.as_ref().map_or(Bytes::ZERO, |buffers| buffers.slack())
}

struct Connection {
    socket: TcpStream,
    member: Option<Member>,
    own: Own,
    /// What its input takes of the budget, beyond a usual buffer.
    charged: usize,
    /// Since when a request that is not whole has been coming.
    half: Option<Instant>,
}

/// Why it goes on.
enum Event {
    Readable,
    Pressure,
    Woken,
    Late,
}

/// Serves a client until it goes, breaks the protocol, or does not go on.
pub(crate) async fn serve(server: Arc<Server>, socket: TcpStream) {
    let member = server.members.load(Ordering::Relaxed).then(|| server.registry.member("connection"));
    let own = Own { session: Session::new(server), buffers: None };
    // Its errors are those of the socket: the client is gone.
    let _ = Connection { socket, member, own, charged: 0, half: None }.run().await;
}

impl Connection {
    async fn run(&mut self) -> io::Result<()> {
        let mut blocked: Option<Blocked> = None;
        loop {
            if blocked.is_none() {
                match self.serve_all().await? {
                    Next::Go => {}
                    Next::Quit => return Ok(()),
                    Next::Wait(wait) => blocked = Some(wait),
                }
                self.tidy();
                consume_budget().await;
            }
            match self.wait(blocked.as_ref()).await? {
                Event::Readable => {
                    let Some(count) = self.read(blocked.is_some())? else { return Ok(()) };
                    // There is more: others have their turn first, for to the runtime reading what is there is no wait.
                    if count >= READ {
                        yield_now().await;
                    }
                }
                // The next wait begins with a slice.
                Event::Pressure => {}
                Event::Woken => {
                    if self.gone() {
                        return Ok(());
                    }
                    let out = &mut self.buffers().output;
                    if let Some(wait) = &blocked
                        && wait.poll(true, out)
                    {
                        blocked = None;
                    }
                }
                Event::Late => {
                    if blocked.take().is_none() {
                        return Ok(());
                    }
                    resp::nil_array(&mut self.buffers().output);
                }
            }
        }
    }

    fn buffers(&mut self) -> &mut Buffers {
        let server = &self.own.session.server;
        // The pool has one for each client that is let in, so nobody waits here.
        self.own.buffers.get_or_insert_with(|| server.buffers.get())
    }

    /// Waits for what comes first. Input goes before pressure: a busy connection shrinks between its reads.
    async fn wait(&mut self, blocked: Option<&Blocked>) -> io::Result<Event> {
        if let Some(member) = &mut self.member {
            // One slice; where there is more to do, `flagged` does not wait.
            let _ = member.poll(&mut self.own);
        }
        let patience = self.own.session.server.options.patience();
        let deadline =
            blocked.map_or_else(|| self.half.map(|since| since + patience), |blocked| blocked.deadline);
        let (member, socket) = (&mut self.member, &self.socket);
        let pressure = async {
            match member {
                Some(member) => {
                    let pause = member.pause();
                    if !pause.is_zero() {
                        sleep(pause).await;
                    }
                    member.flagged().await
                }
                None => pending().await,
            }
        };
        let woken = async {
            match blocked {
                Some(blocked) => blocked.waiter.0.notified().await,
                None => pending().await,
            }
        };
        let late = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            () = woken => Ok(Event::Woken),
            ready = socket.readable() => ready.map(|()| Event::Readable),
            () = pressure => Ok(Event::Pressure),
            () = late => Ok(Event::Late),
        }
    }

    /// Reads what there is, up to one buffer: how much that was. Nothing where the connection ends.
    fn read(&mut self, behind: bool) -> io::Result<Option<usize>> {
        let server = Arc::clone(&self.own.session.server);
        let held = self.own.buffers.as_ref().map_or(0, |buffers| buffers.input.len());
        // Vectors double: twice what is in it.
        let charge = if held + READ > KEEP { 2 * (held + READ) } else { 0 };
        if (behind && held > BEHIND)
            || (charge > self.charged && !server.store.budget.take(charge - self.charged))
        {
            return self.end("ERR too much input");
        }
        self.charged = self.charged.max(charge);
        let input = &mut self.buffers().input;
        input.try_reserve(READ).map_err(|_| ErrorKind::OutOfMemory)?;
        let socket = &self.socket;
        match socket.try_read_buf(&mut self.own.buffers.as_mut().ok_or(ErrorKind::NotFound)?.input) {
            Ok(count) => Ok(Some(count).filter(|&count| count > 0)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Some(0)),
            Err(error) => Err(error),
        }
    }

    /// Whether the client has closed by now, though the runtime has not heard of it: then the message is for another.
    fn gone(&self) -> bool {
        let peeked = recv(&self.socket, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Ok((0, _)))
    }

    /// A last word, if the client takes it.
    fn end(&self, text: &str) -> io::Result<Option<usize>> {
        let mut out = Vec::new();
        resp::error(&mut out, text);
        self.socket.try_write(&out).map(|_| None)
    }

    /// Carries out all requests that are whole.
    async fn serve_all(&mut self) -> io::Result<Next> {
        let Some(mut buffers) = self.own.buffers.take() else { return Ok(Next::Go) };
        let mut done = 0;
        let mut next = Next::Go;
        while matches!(next, Next::Go) {
            let limits = self.own.session.server.limits(self.own.session.trusted);
            let Buffers { input, output, parser } = &mut *buffers;
            match parser.parse(&input[done..], &limits) {
                Ok(false) => break,
                Ok(true) => {
                    let args = Args::new(&input[done..], parser.args());
                    next = commands::run(&mut self.own.session, args, output);
                    done += parser.len();
                    parser.clear();
                }
                Err(Wrong(why)) => {
                    resp::error(output, &format!("ERR Protocol error: {why}"));
                    next = Next::Quit;
                }
            }
            self.own.session.server.counts.requests.fetch_add(1, Ordering::Relaxed);
            if buffers.output.len() >= SEND {
                self.send(&mut buffers.output).await?;
            }
        }
        self.send(&mut buffers.output).await?;
        buffers.input.drain(..done);
        let is_new = done > 0 || self.half.is_none();
        if buffers.input.is_empty() {
            self.half = None;
        } else if is_new {
            self.half = Some(Instant::now());
        }
        self.own.buffers = Some(buffers);
        Ok(next)
    }

    async fn send(&mut self, output: &mut Vec<u8>) -> io::Result<()> {
        if output.is_empty() {
            return Ok(());
        }
        // Most replies fit, and need no timer.
        let sent = match self.socket.try_write(output) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            sent => sent?,
        };
        if sent < output.len() {
            timeout(self.own.session.server.options.patience(), self.socket.write_all(&output[sent..]))
                .await??;
        }
        output.clear();
        Ok(())
    }

    /// Nothing is in the buffers: they go back to the pool.
    fn tidy(&mut self) {
        if self.own.buffers.as_ref().is_some_and(|buffers| buffers.input.is_empty()) {
            self.own.buffers = None;
            self.uncharge();
        }
    }

    fn uncharge(&mut self) {
        self.own.session.server.store.budget.give(std::mem::take(&mut self.charged));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.own.buffers = None;
        self.uncharge();
    }
}
