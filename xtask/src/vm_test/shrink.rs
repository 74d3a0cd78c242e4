//! The queue server of ebbtide-shrink at real memory pressure. In the guest each server has a cgroup (v2) of its own;
//! redis-benchmark fills a queue and drains it, and then a process beside it in the group takes memory above the group's
//! memory.high, for which the kernel holds the group up. The server hears of that by itself and gives back: its resident
//! set is at most 1.5 times its fresh start again, and what was left in its queues is there. The same server without the
//! library, held up for as long, keeps what it has, so the check can fail.
//!
//! Without swap, with which the kernel would push out what a server does not use, and hide that it is kept.

use super::Outcome;
use super::client::Client;
use super::levers::Holder;
use crate::vm::{Kernel, Vm};
use crate::workspace::{build_queue_server, output};
use anyhow::{Context, Result, ensure};
use ebbtide_observe::cgroup::Hierarchy;
use ebbtide_observe::process::{State, Thread};
use ebbtide_observe::{Bytes, Process, Root};
use ebbtide_testkit::child::Child;
use std::fs::{self, File};
use std::net::TcpStream;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Messages of 512 bytes
    messages: u32,
}

/// One server, in the group of that name.
struct Way {
    group: &'static str,
    command: &'static str,
    /// What it must choose.
    source: &'static str,
    /// Whether it gives back.
    shrinks: bool,
}

const WAYS: [Way; 4] = [
    Way {
        group: "root",
        command: "queue-server --port 0",
        source: "triggers on the own cgroup's PSI (/sys/fs/cgroup/root/memory.pressure)",
        shrinks: true,
    },
    Way {
        group: "service",
        command: "env MEMORY_PRESSURE_WATCH=/sys/fs/cgroup/service/memory.pressure \
                  MEMORY_PRESSURE_WRITE=c29tZSAyMDAwMDAgMjAwMDAwMAA= queue-server --port 0",
        source: "the service manager's PSI file (/sys/fs/cgroup/service/memory.pressure)",
        shrinks: true,
    },
    // A container: nothing may be written.
    Way {
        group: "container",
        command: "su nobody -c 'exec queue-server --port 0'",
        source: "a cgroup's memory.events (/sys/fs/cgroup/container/memory.events)",
        shrinks: true,
    },
    // The last, because it is held up for as long as the others were.
    Way { group: "off", command: "queue-server --port 0 --shrink off", source: "nothing", shrinks: false },
];

/// How many messages of 512 bytes there are unless it is said. The emulator takes 50 s of processor time for a million, in
/// and out; these leave a queue with room for 262,144 (6 MiB), which is more than a fresh server has.
pub(super) const MESSAGES: u32 = 150_000;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Messages that stay in the server while memory goes.
const KEPT: u32 = 100;

/// A group's memory.high to begin with: a limit that is not met. Where there is none, memory.events would tell nothing.
const ROOMY: Bytes = Bytes(768 << 20);

/// How far the group is below its memory.high when the other process comes, and how much that wants: more than it gets.
const SPARE: Bytes = Bytes(1 << 20);
const WANTED: Bytes = Bytes(256 << 20);

/// When the guest has waited in vain, by its clock: not a measurement.
const END: Duration = Duration::from_secs(120);

/// A run takes a minute on two idle cores, with a million messages four, and beside other programs up to four times that.
const TIMEOUT: Duration = Duration::from_secs(1200);

pub(super) fn check(kernel: Kernel, messages: u32) -> Result<Outcome> {
    let vm = Vm::new(kernel).memory(Bytes(1 << 30)).timeout(TIMEOUT).program("redis-benchmark");
    let vm = vm.program(build_queue_server()?.to_string_lossy());
    super::guests_word(vm, &["shrink", &messages.to_string()])
}

/// The guest's side.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(fs::exists("/vm/mark")?, "this makes memory short: only in the virtual machine");
    let mut longest = Duration::ZERO;
    for way in &WAYS {
        let stalled = fall(way, args.messages, longest).with_context(|| format!("in group {}", way.group))?;
        longest = longest.max(stalled);
    }
    Ok(ExitCode::SUCCESS)
}

/// Fills the server, drains it, and holds its group up until memory is back, or, where nothing gives it back, until some
/// task of it has waited as long as `least`. Returns how long that was.
fn fall(way: &Way, messages: u32, least: Duration) -> Result<Duration> {
    let server = Server::start(way)?;
    let mut client = Client::new(TcpStream::connect(&server.address)?);
    let fresh = server.fresh()?;
    let most = fresh.plus_half();
    for n in 1..=KEPT {
        let reply = client.ask(&format!("LPUSH kept message-{n}"))?;
        ensure!(reply == format!(":{n}\r\n"), "LPUSH said {reply:?}");
    }
    let full = server.benchmark("lpush", messages, &mut client, messages)?;
    ensure!(full.resident > Bytes(512 * u64::from(messages)), "{} hold all messages?", full.resident);
    let drained = server.benchmark("rpop", messages, &mut client, 0)?;
    ensure!(drained.resident > most.resident, "nothing to give back: {drained:?}, {fresh:?}");
    ensure!(server.said()?.is_empty(), "it gave back before there was pressure: {}", server.said()?);

    let pressed = press(&server, drained, |look| {
        let back = look.resident <= most.resident && server.said()?.contains("gave back ");
        Ok(if way.shrinks { back } else { look.stalled >= least })
    })?;
    for n in 1..=KEPT {
        let reply = client.ask("RPOP kept")?;
        ensure!(reply == format!("message-{n}\r\n"), "message {n} is {reply:?}");
    }
    let after = server.look()?;
    let ended = if way.shrinks { "back" } else { "let go" };
    let Pressed { held, stalled } = pressed;
    println!(
        "{}: {ended} {held:.1?} after the group was first held up, {stalled:.1?} of it stalled",
        way.group
    );
    let list =
        |of: fn(&Look) -> Bytes| [fresh, full, drained, after].map(|look| of(&look).to_string()).join(", ");
    println!("    resident when fresh, full, drained, after: {}", list(|look| look.resident));
    println!("    charged to its group:                      {}", list(|look| look.charged));
    let back = [after.resident <= most.resident, after.charged <= most.charged];
    ensure!(
        back == [way.shrinks; 2],
        "{after:?}, where {most:?} parts what was given back from what was not"
    );
    let said = server.said()?;
    said.lines().for_each(|line| println!("    {line}"));
    ensure!(way.shrinks != said.is_empty(), "it said {said:?}");
    Ok(stalled)
}

/// What pressure was like, by the guest's clock.
#[derive(Debug)]
struct Pressed {
    /// From when the kernel first held the group up to the end.
    held: Duration,
    /// Of this so long some task waited.
    stalled: Duration,
}

/// Lets a process beside the server take memory until that `holds`.
fn press(server: &Server, before: Look, holds: impl Fn(Look) -> Result<bool>) -> Result<Pressed> {
    fs::write(format!("{}/memory.high", server.group), (before.charged + SPARE).0.to_string())?;
    let _other = Holder::begin(WANTED.0, Some(&server.group))?;
    let (began, mut held_from) = (Instant::now(), None);
    loop {
        let look = server.look()?;
        let look = Look { stalled: look.stalled.saturating_sub(before.stalled), ..look };
        if look.highs > before.highs {
            let from = *held_from.get_or_insert_with(Instant::now);
            if holds(look)? {
                return Ok(Pressed { held: from.elapsed(), stalled: look.stalled });
            }
        }
        ensure!(
            began.elapsed() < END,
            "not within {END:?}: {look:?}, {before:?}; it said {:?}",
            server.said()?
        );
        // No file tells of the resident set of itself.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A server in a group of its own, until it is dropped.
struct Server {
    child: Child,
    address: String,
    root: Root,
    group: String,
    log: String,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    /// Of the server.
    resident: Bytes,
    /// To its group. The program's file is in the guest's root file system, which no group is charged for.
    charged: Bytes,
    /// How often the kernel held the group up at memory.high.
    highs: u64,
    /// How long some task of the group waited for memory.
    stalled: Duration,
}

impl Look {
    /// With half as much again as is resident: of either, as a group is charged for less.
    fn plus_half(self) -> Look {
        let half = self.resident.scaled(0.5);
        Look { resident: self.resident + half, charged: self.charged + half, ..self }
    }
}

impl Server {
    fn start(way: &Way) -> Result<Server> {
        let group = format!("{CGROUPS}/{}", way.group);
        fs::create_dir(&group)?;
        fs::write(format!("{group}/memory.high"), ROOMY.0.to_string())?;
        let log = format!("/tmp/{}", way.group);
        let script = format!("echo 0 >{group}/cgroup.procs && exec {}", way.command);
        let child = Child::spawn(Command::new("sh").args(["-c", &script]).stderr(File::create(&log)?));
        let (address, source) =
            child.said().split_once(" memory pressure by ").context("no address and no source")?;
        ensure!(source == way.source, "{source:?} instead of {:?}", way.source);
        let address = address.to_owned();
        Ok(Server { child, address, root: Root::live()?, group, log })
    }

    /// When all threads have come to wait: what is a thread's own comes with its first steps, and be it a stack that is one
    /// huge page (2 MiB; so in one start of eight, where mmap places it on that boundary).
    fn fresh(&self) -> Result<Look> {
        let process = Process::open(&self.root, self.child.pid())?;
        let waits = |thread: &Thread| thread.stat().is_ok_and(|stat| stat.state == State::Sleeping);
        let began = Instant::now();
        while !process.threads()?.iter().all(waits) {
            ensure!(began.elapsed() < END, "it does not come to rest");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.look()
    }

    /// Runs redis-benchmark, after which `left` messages are in its queue.
    fn benchmark(
        &self,
        test: &str,
        messages: u32,
        client: &mut Client<TcpStream>,
        left: u32,
    ) -> Result<Look> {
        let port = self.address.rsplit(':').next().unwrap_or_default();
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", port, "-t", test, "-n", &messages.to_string(), "-d", "512", "-P", "50", "-q"]);
        output(&mut command)?;
        let length = client.ask("LLEN mylist")?;
        ensure!(length == format!(":{left}\r\n"), "after {test}: LLEN said {length:?}");
        self.look()
    }

    fn look(&self) -> Result<Look> {
        // The counters of VmRSS lag by up to 64 pages for each thread (SPLIT_RSS_COUNTING, until 6.2).
        let resident = Process::open(&self.root, self.child.pid())?.rollup()?.rss;
        let hierarchy = Hierarchy::find(&self.root)?.context("no cgroups")?;
        let sample = hierarchy.sample(self.group.trim_start_matches(CGROUPS))?;
        let charged = sample.current.context("no memory.current")?;
        let stalled = sample.pressure.context("no memory.pressure")?.some.total_us;
        Ok(Look { resident, charged, highs: sample.events.high, stalled: Duration::from_micros(stalled) })
    }

    /// What it wrote to its standard error.
    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }
}
