//! Borrowing real threads at rest: what they were doing goes on as if nothing had been, whatever they wait in, also when
//! the tracer is killed in the middle of it.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use ebbtide_sys::borrow::{BorrowError, Borrowed};
use ebbtide_sys::freeze::{self, FreezeError, Stopped};
use ebbtide_sys::remote;
use ebbtide_testkit::child::{self, Child, Parent};
use rustix::process::{Pid, Signal, kill_process};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// `mov $15, %rax; syscall`, and a wrapper's `syscall; cmp $-4095, %rax; jae; ret`.
const RESTORER: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
const GATE: &[u8] = &[0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0x01, 0xc3];
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    child::play(&[("borrower", borrower)]);
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("resting");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/resting.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-no-pie", "-o"]).arg(&program).arg(&source);
        assert!(gcc.status().unwrap().success());
        program
    })
}

/// What borrowing needs to know of a process.
#[derive(Debug, Clone)]
struct Place {
    pid: u32,
    restorer: u64,
    gate: u64,
    stack: Range<u64>,
}

impl Place {
    fn of(pid: u32) -> Place {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let range = |line: &str| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            u64::from_str_radix(start, 16).unwrap()..u64::from_str_radix(end, 16).unwrap()
        };
        let libc = maps.lines().find(|line| line.contains("r-xp") && line.contains("libc.so")).unwrap();
        let libc = range(libc);
        let mut code = vec![0; (libc.end - libc.start) as usize];
        let process = Pid::from_raw(pid as i32).unwrap();
        assert_eq!(remote::read(process, libc.start, &mut code).unwrap(), code.len());
        let find = |what: &[u8]| {
            let at = code.windows(what.len()).position(|bytes| bytes == what).unwrap();
            libc.start + at as u64
        };
        let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
        Place { pid, restorer: find(RESTORER), gate: find(GATE), stack: range(stack) }
    }

    fn with<R: Send>(
        &self,
        job: impl FnOnce(&mut Borrowed<'_>) -> Result<R, BorrowError> + Send,
    ) -> Result<Result<R, BorrowError>, FreezeError> {
        let body = |stopped: &Stopped<'_>| {
            let mut thread = Borrowed::borrow(stopped, self.pid, self.restorer, self.stack.clone(), false)?;
            job(&mut thread)
        };
        freeze::one_stopped(self.pid, self.pid, body).map(|(result, _)| result)
    }

    /// The same at the end of an epoll_wait, of a process that never waits.
    fn after_wait<R: Send>(
        &self,
        job: impl FnOnce(&mut Borrowed<'_>) -> Result<R, BorrowError> + Send,
    ) -> Result<R, BorrowError> {
        let wait = libc::SYS_epoll_wait as u32;
        let body = |stopped: &Stopped<'_>| {
            let call = std::fs::read_to_string(format!("/proc/{0}/task/{0}/syscall", self.pid)).unwrap();
            assert!(call.starts_with(&format!("{wait} ")), "{call}");
            let mut thread = Borrowed::borrow(stopped, self.pid, self.restorer, self.stack.clone(), false)?;
            job(&mut thread)
        };
        freeze::one_after_call(self.pid, self.pid, PATIENCE, &[wait], body).unwrap().0
    }
}

/// Borrows the process that its arguments name, again and again, until it is killed; at the end of an epoll_wait if the
/// last of them says so.
fn borrower(parent: &mut Parent) {
    let place = Place::of(u32::try_from(parent.number(0)).unwrap());
    let work = parent.number(1);
    let is_busy = parent.number(2) == 1;
    let mut said = false;
    loop {
        let job = |thread: &mut Borrowed<'_>| {
            if !std::mem::replace(&mut said, true) {
                parent.ready("");
            }
            (0..20u64).try_for_each(|n| thread.call(work, [n, 0, 0, 0, 0, 0], PATIENCE))
        };
        match is_busy {
            true => place.after_wait(job).unwrap(),
            false => place.with(job).unwrap().unwrap(),
        }
    }
}

fn numbers(said: &str) -> Vec<u64> {
    said.split(' ').map(|number| number.parse().unwrap()).collect()
}

/// Ends the program and returns how often its function was called and how often it rested.
fn end(mut child: Child, kind: &str) -> (u64, u64) {
    let said = match kind {
        "read" => child.ask("q").to_owned(),
        _ => {
            kill_process(Pid::from_raw(child.pid() as i32).unwrap(), Signal::TERM).unwrap();
            child.ask("").to_owned()
        }
    };
    assert!(child.wait().success(), "{kind}: a register, a result or a time differed");
    let said = numbers(&said);
    (said[0], said[1])
}

#[test]
fn whatever_a_thread_waits_in() {
    const ROUNDS: u64 = 300;
    for kind in ["read", "pause", "epoll", "spin", "sleep", "poll", "futex"] {
        let child = Child::spawn(Command::new(program()).arg(kind));
        let (work, place) = (child.said().parse().unwrap(), Place::of(child.pid()));
        for round in 0..ROUNDS {
            let parent = place.with(|thread| {
                thread.call(work, [round, 1, 0, 0, 0, 0], PATIENCE)?;
                let parent = thread.system_call(place.gate, libc::SYS_getppid as u64, [0; 6], PATIENCE)?;
                let refused =
                    thread.system_call(place.gate, libc::SYS_close as u64, [u64::MAX; 6], PATIENCE)?;
                assert_eq!(refused, -i64::from(libc::EBADF));
                Ok(parent)
            });
            assert_eq!(parent.unwrap().unwrap(), i64::from(std::process::id()), "{kind}");
        }
        let (calls, rests) = end(child, kind);
        println!("{kind}: borrowed {ROUNDS} times, rested {rests} times");
        assert_eq!(calls, ROUNDS, "{kind}");
    }
}

/// At the end of a call that does not wait, which is where a busy event loop is met.
#[test]
fn a_thread_that_never_waits() {
    const ROUNDS: u64 = 300;
    let child = Child::spawn(Command::new(program()).arg("busy"));
    let (work, place) = (child.said().parse().unwrap(), Place::of(child.pid()));
    for round in 0..ROUNDS {
        let parent = place.after_wait(|thread| {
            thread.call(work, [round, 1, 0, 0, 0, 0], PATIENCE)?;
            thread.system_call(place.gate, libc::SYS_getppid as u64, [0; 6], PATIENCE)
        });
        assert_eq!(parent.unwrap(), i64::from(std::process::id()));
    }
    let (calls, rests) = end(child, "busy");
    assert_eq!(calls, ROUNDS);
    println!("busy: borrowed {ROUNDS} times, waited {rests} times");
}

/// One that makes no such call runs on.
#[test]
fn a_thread_that_never_calls() {
    let limit = Duration::from_millis(1);
    for (kind, meant) in
        [("spin", libc::SYS_epoll_wait), ("read", libc::SYS_read), ("busy", libc::SYS_getppid)]
    {
        let child = Child::spawn(Command::new(program()).arg(kind));
        for _ in 0..100 {
            let none = freeze::one_after_call(child.pid(), child.pid(), limit, &[meant as u32], |_| ());
            assert_eq!(none, Err(FreezeError::Stuck(child.pid())), "{kind}");
        }
        assert_eq!(end(child, kind).0, 0, "{kind}");
    }
}

#[test]
fn a_tracer_that_is_killed() {
    const KILLS: u64 = 150;
    // Those that nobody has to put back: they begin their system call anew, or may be interrupted.
    for kind in ["read", "spin", "epoll", "pause", "busy"] {
        let child = Child::spawn(Command::new(program()).arg(kind));
        let work = child.said().to_owned();
        let is_busy = if kind == "busy" { "1" } else { "0" };
        for round in 0..KILLS {
            let borrower = Child::start("borrower", &[&child.pid().to_string(), &work, is_busy]);
            // At another point each time: reading a file takes some microseconds.
            (0..round * 7 % 40).for_each(|_| drop(std::fs::read("/proc/self/status")));
            drop(borrower);
        }
        let (calls, rests) = end(child, kind);
        println!("{kind}: {KILLS} tracers killed, {calls} calls, rested {rests} times");
        assert!(calls > 0);
    }
}

#[test]
fn a_call_that_takes_too_long_ends_by_itself() {
    let child = Child::spawn(Command::new(program()).arg("read"));
    let place = Place::of(child.pid());
    let time: [u64; 2] = [2, 0];
    let at = place.stack.start + 64;
    let bytes: Vec<u8> = time.iter().flat_map(|word| word.to_le_bytes()).collect();
    remote::write(Pid::from_raw(child.pid() as i32).unwrap(), at, &bytes).unwrap();
    let args = [at, 0, 0, 0, 0, 0];
    let late = place.with(|thread| {
        let number = libc::SYS_nanosleep as u64;
        thread.system_call(place.gate, number, args, Duration::from_millis(1)).map(drop)
    });
    assert_eq!(late.unwrap(), Err(BorrowError::Late));
    assert_eq!(end(child, "read"), (0, 1));
}

/// Whether the process is stopped by a signal; it is waited for, as the kernel wakes it first.
fn is_stopped(pid: u32) -> bool {
    let is_stopped = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    };
    let began = Instant::now();
    while !is_stopped() && began.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    is_stopped()
}

#[test]
fn signals_that_come_meanwhile_are_not_lost() {
    for kind in ["read", "poll"] {
        let child = Child::spawn(Command::new(program()).arg(kind));
        let (work, place) = (child.said().parse().unwrap(), Place::of(child.pid()));
        let pid = Pid::from_raw(child.pid() as i32).unwrap();
        let called = place.with(|thread| {
            kill_process(pid, Signal::STOP).unwrap();
            thread.call(work, [0; 6], PATIENCE)
        });
        called.unwrap().unwrap();
        assert!(is_stopped(child.pid()), "{kind}");
        kill_process(pid, Signal::CONT).unwrap();
        assert_eq!(end(child, kind).0, 1);
    }
    let mut child = Child::spawn(Command::new(program()).arg("pause"));
    let (work, place) = (child.said().parse().unwrap(), Place::of(child.pid()));
    let called = place.with(|thread| {
        // To the thread: what is for the process comes after the call and what follows it.
        #[allow(unsafe_code)]
        // SAFETY: tgkill takes three numbers.
        let sent = unsafe { libc::syscall(libc::SYS_tgkill, child.pid(), child.pid(), libc::SIGTERM) };
        assert_eq!(sent, 0);
        thread.call(work, [0; 6], PATIENCE)?;
        assert_eq!(thread.call(work, [0; 6], PATIENCE), Err(BorrowError::Signalled));
        Ok(())
    });
    called.unwrap().unwrap();
    assert_eq!(numbers(child.ask(""))[0], 1);
    assert!(child.wait().success());
}
