//! The sources that only a kernel has, on the kernel this runs on: its PSI, with and without privilege, and cgroup v1.
//! What it lacks (cgroup v2 with the memory controller, above all) is tested by `cargo xtask vm-test pressure`.
#![allow(unsafe_code, clippy::unwrap_used)]

use ebbtide_pressure::{Change, Kind, Level, Options, Pressure};
use ebbtide_testkit::child::is_root;
use ebbtide_testkit::{Child, FakeRoot, Parent};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const HOST: &str = "/proc/pressure/memory";
const NOBODY: u32 = 65534;
const TRIGGER: &[u8] = b"some 200000 2000000\0";
const THRESHOLD: Duration = Duration::from_millis(200);

/// Stalls that one test makes are the others' too: one at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
#[ignore = "plays the child programs"]
fn child_program() {
    ebbtide_testkit::child::play(&[("grouped", grouped), ("unprivileged", unprivileged), ("reader", reader)]);
}

/// How long some task of the host was stalled, ever.
fn stalled() -> Option<Duration> {
    let text = fs::read_to_string(HOST).ok()?;
    let total = text.lines().next()?.rsplit_once("total=")?.1;
    Some(Duration::from_micros(total.parse().ok()?))
}

/// A group, removed when dropped.
struct Group(PathBuf);

impl Group {
    /// One of cgroup v2, which need not have the memory controller to keep PSI. `None`, with the reason printed, where
    /// there can be none.
    fn unified() -> Option<Group> {
        let tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let top = tops.into_iter().find(|top| top.join("cgroup.controllers").exists());
        let dir = top.map(|top| top.join(format!("ebbtide-pressure-{}", std::process::id())));
        let made = dir.filter(|dir| fs::create_dir(dir).is_ok()).map(Group);
        let group = made.filter(|group| group.0.join("memory.pressure").exists());
        if group.is_none() {
            println!("skipped: no group of cgroup v2 with PSI can be made here");
        }
        group
    }

    /// One of v1 with a limit; `None` in the same way.
    fn new(limit: &str) -> Option<Group> {
        let dir = Path::new("/sys/fs/cgroup/memory").join(format!("ebbtide-pressure-{}", std::process::id()));
        if !Path::new("/sys/fs/cgroup/memory/cgroup.event_control").exists() || fs::create_dir(&dir).is_err()
        {
            println!("skipped: no group of cgroup v1 with the memory controller can be made here");
            return None;
        }
        let group = Group(dir);
        fs::write(group.0.join("memory.limit_in_bytes"), limit).unwrap();
        Some(group)
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The processes in it have ended, or a test has failed.
        let _ = fs::remove_dir(&self.0);
    }
}

/// A process in a group that writes a file of a few times the group's limit at each request: it stalls in reclaim of
/// nothing but its own page cache.
struct Stall {
    child: Child,
    _group: Group,
}

impl Stall {
    fn new() -> Option<Stall> {
        let group = Group::new("4M")?;
        let child = Child::start("grouped", &[]);
        group.take(child.pid());
        Some(Stall { child, _group: group })
    }

    fn some(&mut self) {
        self.child.ask("write 12");
    }
}

fn grouped(parent: &mut Parent) {
    let mut file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut pressure = None;
    parent.ready("");
    while let Some(line) = parent.listen() {
        match line.split_once(' ') {
            Some(("write", mib)) => {
                write(&mut file, mib.parse().unwrap());
                parent.ready("");
            }
            Some(("open", millis)) => {
                let quiet = Duration::from_millis(millis.parse().unwrap());
                let options = Options::new().no_variables().quiet(quiet).cooldown(Duration::ZERO);
                let opened = Pressure::open(options).unwrap();
                parent.ready(opened.source());
                pressure = Some(opened);
            }
            _ => {
                let pressure = pressure.as_ref().unwrap();
                match line.as_str() {
                    "stall" => {
                        let event = std::iter::repeat_with(|| {
                            write(&mut file, 12);
                            pressure.try_next()
                        });
                        let end = Instant::now() + Duration::from_secs(60);
                        let mut tries = event.take_while(|_| Instant::now() < end);
                        parent.ready(tries.find_map(|event| event).unwrap().change());
                    }
                    "next" => parent.ready(pressure.wait(Some(Duration::from_secs(60))).unwrap().change()),
                    "none" => parent.ready(pressure.wait(Some(Duration::from_secs(2))).is_none()),
                    "source" => parent.ready(pressure.source()),
                    _ => parent.ready(watcher().map_or(0, |task| cpu(&task).as_millis())),
                }
            }
        }
    }
}

/// Writes `mib` MiB into the page cache.
fn write(file: &mut fs::File, mib: u32) {
    file.set_len(0).unwrap();
    (0..mib).for_each(|_| file.write_all(&[7; 1 << 20]).unwrap());
}

/// The watcher's thread, in /proc.
fn watcher() -> Option<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    tasks.into_iter().find(|task| fs::read(task.join("comm")).is_ok_and(|name| name == b"pressure\n"))
}

fn cpu(task: &Path) -> Duration {
    let text = fs::read_to_string(task.join("schedstat")).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn v1_tells_of_reclaim_in_the_own_group() {
    let _alone = alone();
    let Some(group) = Group::new("8M") else { return };
    let mut child = Child::start("grouped", &[]);
    group.take(child.pid());
    let source = child.ask("open 2000").to_owned();
    let path = group.0.join("memory.pressure_level");
    assert_eq!(source, format!("a cgroup's memory.pressure_level ({})", path.display()));
    for _ in 0..2 {
        child.ask("write 64");
        assert_eq!(child.ask("next"), "onset");
        // It may get worse before it is over.
        while child.ask("next") != "release" {}
    }
    let spent: u64 = child.ask("cpu").parse().unwrap();
    assert!(
        spent < 1000,
        "the watcher spun: {spent} ms of processor time in some seconds of next to nothing"
    );
    // The kernel signals that the group goes, too: that is no pressure.
    fs::write("/sys/fs/cgroup/memory/cgroup.procs", child.pid().to_string()).unwrap();
    fs::remove_dir(&group.0).unwrap();
    assert_eq!(child.ask("none"), "true");
    assert!(!child.ask("source").contains("memory.pressure_level"), "{}", child.said());
}

/// The group's file says what the group waited for, whichever hierarchy holds it up.
#[test]
fn the_own_groups_triggers_are_heard_until_it_is_removed() {
    let _alone = alone();
    let (Some(own), Some(limited)) = (Group::unified(), Group::new("4M")) else { return };
    let mut child = Child::start("grouped", &[]);
    own.take(child.pid());
    let path = own.0.join("memory.pressure");
    assert_eq!(child.ask("open 1000"), format!("triggers on the own cgroup's PSI ({})", path.display()));
    limited.take(child.pid());
    // Writes until it is told.
    assert_eq!(child.ask("stall"), "onset");
    fs::write(own.0.with_file_name("cgroup.procs"), child.pid().to_string()).unwrap();
    fs::remove_dir(&own.0).unwrap();
    // It is over, for nothing is known any more; the level may have risen before.
    while child.ask("next") != "release" {}
    assert!(!child.ask("source").contains("own cgroup's"), "{}", child.said());
    drop(child);
}

/// Whatever is told of the host must have happened.
#[test]
fn the_hosts_triggers_are_armed_and_invent_nothing() {
    let _alone = alone();
    let Some(before) = stalled() else {
        println!("skipped: this kernel keeps no pressure stall information");
        return;
    };
    let write = "c29tZSAyMDAwMDAgMjAwMDAwMAA=";
    let variables =
        Options::new().variable("MEMORY_PRESSURE_WATCH", HOST).variable("MEMORY_PRESSURE_WRITE", write);
    for (options, kind) in
        [(Options::new().no_variables(), Kind::HostTrigger), (variables, Kind::SystemdFile)]
    {
        let pressure = Pressure::open(options).unwrap();
        println!("{} {:?}", pressure.source(), pressure.passed_over());
        if kind == Kind::SystemdFile {
            assert_eq!(pressure.source().kind(), kind);
        }
        let event = pressure.wait(Some(Duration::from_millis(2500)));
        let grown = stalled().unwrap() - before;
        assert!(event.is_none() || grown >= Duration::from_millis(100), "{event:?} after {grown:?}");
    }
}

/// Without privilege: a trigger of its own beside the library's.
fn unprivileged(parent: &mut Parent) {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let armed = rustix::fs::open(HOST, flags, Mode::empty()).and_then(|fd| {
        rustix::io::write(&fd, TRIGGER)?;
        Ok(fd)
    });
    let fd = match armed {
        Ok(fd) => fd,
        Err(errno) => return parent.ready(errno),
    };
    let pressure = Pressure::open(Options::new().no_variables()).unwrap();
    parent.ready(pressure.source());
    while let Some(line) = parent.listen() {
        if line == "raw" {
            let wait = Timespec { tv_sec: 6, tv_nsec: 0 };
            let fired = poll(&mut [PollFd::new(&fd, PollFlags::PRI)], Some(&wait)).unwrap() == 1;
            parent.ready(fired);
        } else {
            // The library's own triggers fire in the same tick of the kernel's, or in the next.
            let event = pressure.wait(Some(Duration::from_millis(line.parse().unwrap())));
            parent.ready(event.map_or("nothing".to_owned(), |event| event.change().to_string()));
        }
    }
}

/// A program of this file as nobody. `None`, with the reason printed, where it cannot run.
fn as_nobody(program: &str, args: &[&str]) -> Option<Child> {
    if !is_root() {
        return Some(Child::start(program, args));
    }
    let probe = std::process::Command::new(std::env::current_exe().unwrap())
        .arg("--list")
        .stdout(std::process::Stdio::null())
        .uid(NOBODY)
        .gid(NOBODY)
        .status();
    if !probe.is_ok_and(|status| status.success()) {
        println!("skipped: nobody may not run this program where it is");
        return None;
    }
    Some(Child::spawn(Child::command(program, args).uid(NOBODY).gid(NOBODY)))
}

/// After a long time of stalls nobody's new trigger fires at the first short one. That is the kernel's fault; the library
/// arms the same and says nothing, until there is a stall that deserves it.
#[test]
fn the_false_first_event_is_suppressed_and_a_true_one_is_not() {
    let _alone = alone();
    let (Some(mut stall), Some(start)) = (Stall::new(), stalled()) else {
        println!("skipped: no stall can be made and measured here");
        return;
    };
    let long = Instant::now() + Duration::from_secs(60);
    while stalled().unwrap() - start < 3 * THRESHOLD {
        assert!(Instant::now() < long, "the host does not stall");
        stall.some();
    }
    let Some(mut nobody) = as_nobody("unprivileged", &[]) else { return };
    if !nobody.said().starts_with("triggers") {
        println!("skipped: this kernel gives nobody a trigger: {}", nobody.said());
        return;
    }
    assert!(nobody.said().contains("PSI"), "{}", nobody.said());
    let armed = stalled().unwrap();
    stall.some();
    let fired = nobody.ask("raw") == "true";
    let told = nobody.ask("2500").to_owned();
    let grown = stalled().unwrap() - armed;
    println!("after {grown:?} of stall the kernel's trigger fired: {fired}; told: {told}");
    if grown >= THRESHOLD {
        println!("skipped: this machine stalled by itself: what was told was true");
    } else {
        assert_eq!(told, "nothing");
        if !fired {
            println!("skipped: this kernel's trigger did not fire falsely");
        }
    }
    let long = Instant::now() + Duration::from_secs(60);
    while nobody.ask("1") == "nothing" {
        assert!(Instant::now() < long, "nothing was told after {:?} of stall", stalled().unwrap() - armed);
        stall.some();
    }
    assert!(["onset", "rise"].contains(&nobody.said()), "{}", nobody.said());
}

/// Opens a reader on the root that it is told of, and says what it found.
fn reader(parent: &mut Parent) {
    let root = parent.args()[0].clone();
    let pressure = Pressure::open(Options::new().root(root).no_variables()).unwrap();
    let passed_over: Vec<String> = pressure.passed_over().iter().map(ToString::to_string).collect();
    parent.ready(format!("{:?} {}", pressure.source().kind(), passed_over.join("; ")));
}

/// A PSI file that may be read and not written, as in most containers.
#[test]
fn what_can_only_be_read_is_polled() {
    let psi = "avg10=0.00 avg60=0.00 avg300=0.00 total=1";
    let fake = FakeRoot::new().file("proc/pressure/memory", format!("some {psi}\nfull {psi}\n"));
    for (path, mode) in [("", 0o755), ("proc/pressure/memory", 0o444)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(fake.path().join(path), mode).unwrap();
    }
    let Some(child) = as_nobody("reader", &[fake.path().to_str().unwrap()]) else { return };
    assert!(child.said().starts_with("HostAverages "), "{}", child.said());
    assert!(child.said().contains("this process may not use it: Permission denied"), "{}", child.said());
}

/// The thread takes no signal of the program's, and ends with the last reader.
#[test]
fn the_thread_keeps_to_itself() {
    let _alone = alone();
    let fake = FakeRoot::new().file("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 90 kB\n");
    let pressure = Pressure::open(Options::new().root(fake.path()).no_variables()).unwrap();
    let other = pressure.try_clone().unwrap();
    // A thread names itself: that is all it may be late with.
    let late = Instant::now() + Duration::from_secs(60);
    while watcher().is_none() {
        assert!(Instant::now() < late, "there is no thread of that name");
        std::thread::yield_now();
    }
    let status = fs::read_to_string(watcher().unwrap().join("status")).unwrap();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    for signal in [Signal::SIGTERM, Signal::SIGPIPE, Signal::SIGPROF] {
        assert!(blocked & (1 << (signal as u32 - 1)) != 0, "signal {signal} of {blocked:x}");
    }
    drop(pressure);
    assert!(watcher().is_some());
    drop(other);
    // It is joined a moment before the kernel takes it from the list.
    while watcher().is_some() {
        std::thread::yield_now();
    }
}

/// In a forked child everything returns at once, and the parent loses nothing.
#[test]
fn a_forked_child_is_left_alone() {
    let _alone = alone();
    let fake = FakeRoot::new().file("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 1 kB\n");
    let pressure = Pressure::open(Options::new().root(fake.path()).no_variables()).unwrap();
    poll(&mut [PollFd::new(&pressure, PollFlags::IN)], None).unwrap();
    // SAFETY: the child calls nothing that takes a lock of the parent's other threads, and leaves by _exit.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let quiet = pressure.wait(None).is_none() && pressure.try_next().is_none();
            let alone = pressure.try_clone().is_err() && pressure.passed_over().is_empty();
            let level = pressure.level() == Level::Critical;
            drop(pressure);
            // SAFETY: always sound; no destructor of the parent's runs.
            unsafe { nix::libc::_exit(if quiet && alone && level { 0 } else { 1 }) };
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Exited(child, 0));
        }
    }
    assert_eq!(pressure.try_next().map(|event| event.change()), Some(Change::Onset));
    assert!(watcher().is_some());
}
