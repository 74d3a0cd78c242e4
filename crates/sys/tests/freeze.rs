//! Stopping real processes: they stand still, they run on afterwards, and nothing is left of it, whatever they
//! are doing and however the tracer ends.
#![allow(clippy::unwrap_used)]

use ebbtide_sys::freeze::{FreezeError, Frozen};
use ebbtide_sys::remote;
use ebbtide_testkit::child::{self, is_root};
use ebbtide_testkit::{Child, Parent};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    child::play(&[
        ("counting", counting),
        ("freezer", freezer),
        ("restless", restless),
        ("leaderless", leaderless),
        ("vforked", vforked),
        ("signalled", signalled),
    ]);
}

const COUNTERS: usize = 2;

fn answer(parent: &mut Parent) {
    while let Some(asked) = parent.listen() {
        parent.ready(asked);
    }
}

/// Counts in two threads at full speed, where it says, and answers what it is asked.
fn counting(parent: &mut Parent) {
    let counters: Arc<[AtomicU64; COUNTERS]> = Arc::default();
    for at in 0..COUNTERS {
        let counters = Arc::clone(&counters);
        std::thread::spawn(move || {
            loop {
                counters[at].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    parent.ready(counters.as_ptr() as u64);
    answer(parent);
}

/// Freezes the process that its argument names, and says what came of it.
fn freezer(parent: &mut Parent) {
    let frozen = Frozen::stop(u32::try_from(parent.number(0)).unwrap());
    parent.ready(frozen.as_ref().map_or_else(ToString::to_string, |_| "frozen".to_owned()));
    parent.listen();
}

/// Starts threads that end at once, again and again, and answers what it is asked.
fn restless(parent: &mut Parent) {
    for _ in 0..2 {
        std::thread::spawn(|| {
            loop {
                let _ = std::thread::spawn(|| {}).join();
            }
        });
    }
    parent.ready("");
    answer(parent);
}

/// Its first thread has ended; another answers.
#[allow(unsafe_code)]
fn leaderless(_: &mut Parent) {
    std::thread::spawn(|| {
        child::play(&[("leaderless", |parent| {
            parent.ready("");
            answer(parent);
        })])
    });
    // SAFETY: exit(2) ends the calling thread and nothing else; what it would have dropped is never needed.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}

/// Waits inside the kernel for the child that vfork made, until that is told to end; then answers itself.
#[allow(unsafe_code)]
fn vforked(parent: &mut Parent) {
    // SAFETY: without CLONE_VM the child has a copy of all memory, as by fork; this process has no other threads
    // that could hold a lock but the test harness's, which waits. CLONE_VFORK makes the parent wait for its end.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_VFORK | libc::SIGCHLD, 0, 0, 0, 0) };
    parent.ready(if pid == 0 { "child" } else { "parent" });
    if pid == 0 {
        parent.listen();
        // SAFETY: it does not return, and runs nothing of the copied process.
        unsafe { libc::_exit(0) };
    }
    answer(parent);
}

static HANDLED: AtomicU64 = AtomicU64::new(0);

extern "C" fn handle(_: libc::c_int) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Counts real-time signals, of which none may be lost, and tells the count to who asks.
#[allow(unsafe_code)]
fn signalled(parent: &mut Parent) {
    // SAFETY: a zeroed sigaction is a valid one; the handler makes no call but an atomic addition.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGRTMIN(), &action, std::ptr::null_mut());
    }
    parent.ready(rustix::thread::gettid());
    while parent.listen().is_some() {
        parent.ready(HANDLED.load(Ordering::Relaxed));
    }
}

/// Freezes `pid`; `None`, and said, where this user may not. On a busy machine a thread may wait for a processor
/// for long.
fn stop(pid: u32) -> Option<Frozen> {
    const TRIES: usize = 50;
    for _ in 0..TRIES {
        match Frozen::stop(pid) {
            Err(FreezeError::Stuck(_)) => {}
            Err(FreezeError::Denied) if !is_root() => {
                println!("skipped: tracing a child is forbidden here");
                return None;
            }
            frozen => return Some(frozen.unwrap()),
        }
    }
    panic!("{pid} was never stopped: {:?}", states(pid));
}

/// The states of all threads, as in their stat files.
fn states(pid: u32) -> Vec<char> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).collect()
}

fn counts(pid: u32, address: u64) -> [u8; 8 * COUNTERS] {
    let mut counts = [0; 8 * COUNTERS];
    remote::read(Pid::from_raw(pid as i32).unwrap(), address, &mut counts).unwrap();
    counts
}

/// Nobody traces it, and it answers.
fn assert_runs(child: &mut Child) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
    assert_eq!(child.ask("here"), "here");
}

#[test]
fn all_threads_stand_still_and_then_run_on() {
    let mut child = Child::start("counting", &[]);
    let (pid, address) = (child.pid(), child.said().parse().unwrap());
    for _ in 0..50 {
        let Some(frozen) = stop(pid) else { return };
        let before = counts(pid, address);
        assert!(states(pid).iter().all(|&state| state == 't'), "{:?}", states(pid));
        assert_eq!(counts(pid, address), before);
        assert!(!frozen.release().is_zero());
        assert_runs(&mut child);
    }
}

#[test]
fn a_killed_tracer_lets_go() {
    let mut child = Child::start("counting", &[]);
    let (pid, address) = (child.pid(), child.said().parse().unwrap());
    let tracer = Child::start("freezer", &[&pid.to_string()]);
    if tracer.said() != "frozen" {
        return println!("skipped: {}", tracer.said());
    }
    let before = counts(pid, address);
    assert_eq!(counts(pid, address), before);
    // By SIGKILL, and waits for its end.
    drop(tracer);
    assert_runs(&mut child);
    assert!(states(pid).iter().all(|state| "RSD".contains(*state)), "{:?}", states(pid));
}

#[test]
fn a_traced_process_is_refused_and_its_tracer_named() {
    let child = Child::start("counting", &[]);
    let tracer = Child::start("freezer", &[&child.pid().to_string()]);
    if tracer.said() != "frozen" {
        return println!("skipped: {}", tracer.said());
    }
    assert_eq!(Frozen::stop(child.pid()).unwrap_err(), FreezeError::Traced(tracer.pid()));
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut child = Child::start("counting", &[]);
    let pid = Pid::from_raw(child.pid() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT).unwrap();
    let Some(frozen) = stop(child.pid()) else { return };
    assert!(states(child.pid()).iter().all(|&state| state == 't'));
    frozen.release();
    // Each goes back to its stop by itself, which nobody is told.
    let back = || states(child.pid()).iter().all(|&state| state == 'T');
    assert!((0..60_000).any(|_| back() || pause()), "{:?}", states(child.pid()));
    kill_process(pid, Signal::CONT).unwrap();
    assert_runs(&mut child);
}

/// A millisecond, between two looks at what nobody can wait for; false.
fn pause() -> bool {
    std::thread::sleep(std::time::Duration::from_millis(1));
    false
}

/// Stopped and continued while it is traced: what the signals said holds afterwards.
#[test]
fn signals_to_stop_and_go_on_hold_after_the_release() {
    let mut child = Child::start("counting", &[]);
    let pid = Pid::from_raw(child.pid() as i32).unwrap();
    for signal in [Signal::STOP, Signal::CONT] {
        let Some(frozen) = stop(child.pid()) else { return };
        kill_process(pid, signal).unwrap();
        frozen.release();
        let seen = if signal == Signal::STOP { WaitIdOptions::STOPPED } else { WaitIdOptions::CONTINUED };
        waitid(WaitId::Pid(pid), seen).unwrap();
    }
    assert_runs(&mut child);
}

#[test]
fn no_signal_is_lost() {
    const SIGNALS: i32 = 500;
    let mut child = Child::start("signalled", &[]);
    let (pid, tid) = (child.pid(), child.said().parse().unwrap());
    let Some(first) = stop(pid) else { return };
    drop(first);
    let sender = std::thread::spawn(move || (0..SIGNALS).for_each(|_| send_real_time(pid, tid)));
    while !sender.is_finished() {
        drop(stop(pid));
    }
    sender.join().unwrap();
    // The thread that reads gets them all before it reads on.
    assert_eq!(child.ask("how many?"), SIGNALS.to_string());
}

#[allow(unsafe_code)]
fn send_real_time(pid: u32, tid: i32) {
    // SAFETY: tgkill takes plain numbers only.
    assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, libc::SIGRTMIN()) }, 0);
}

#[test]
fn threads_that_come_and_go() {
    let mut child = Child::start("restless", &[]);
    for _ in 0..100 {
        match Frozen::stop(child.pid()) {
            Ok(_frozen) => {
                let states = states(child.pid());
                assert!(states.iter().all(|state| "tZX".contains(*state)), "{states:?}");
            }
            Err(FreezeError::Denied) if !is_root() => return println!("skipped: tracing is forbidden here"),
            Err(error) => assert!(matches!(error, FreezeError::Multiplying | FreezeError::Stuck(_))),
        }
    }
    assert_runs(&mut child);
}

#[test]
fn a_process_whose_first_thread_has_ended() {
    let mut child = Child::start("leaderless", &[]);
    let Some(frozen) = stop(child.pid()) else { return };
    let states = states(child.pid());
    assert!(states.contains(&'t') && states.iter().all(|state| "tZ".contains(*state)), "{states:?}");
    frozen.release();
    assert_runs(&mut child);
}

#[test]
fn a_thread_that_waits_for_its_vfork_child_is_let_go() {
    let mut child = Child::start("vforked", &[]);
    assert_eq!(child.said(), "child");
    match Frozen::stop(child.pid()) {
        Err(FreezeError::Denied) if !is_root() => return println!("skipped: tracing is forbidden here"),
        stopped => assert!(matches!(stopped, Err(FreezeError::Stuck(_))), "{stopped:?}"),
    }
    assert_eq!(child.ask("end"), "parent");
    assert_runs(&mut child);
}

/// exec ends all other threads, and takes the first one's id.
#[test]
fn a_process_that_becomes_another_program() {
    let script = "echo \"@ready $1\"; read line; exec sh -c \"$0\" \"$0\" $(($1 + 1))";
    let mut command = std::process::Command::new("sh");
    let mut child = Child::spawn(command.args(["-c", script, script, "0"]));
    for round in 1..50 {
        child.tell("exec");
        let Some(frozen) = stop(child.pid()) else { return };
        frozen.release();
        // It becomes the one after that too; what the first one said is read here.
        assert_eq!(child.ask("exec"), round.to_string());
    }
}

#[test]
fn an_ended_process() {
    let mut child = Child::start("counting", &[]);
    child.make_zombie();
    assert_eq!(Frozen::stop(child.pid()).unwrap_err(), FreezeError::Ended);
    let pid = child.pid();
    drop(child);
    assert_eq!(Frozen::stop(pid).unwrap_err(), FreezeError::Ended);
    assert_eq!(Frozen::stop(u32::MAX).unwrap_err(), FreezeError::Ended);
}

/// The kill is not held up by those who look.
#[test]
fn a_process_that_is_killed_while_it_stands_still() {
    let child = Child::start("counting", &[]);
    let Some(frozen) = stop(child.pid()) else { return };
    kill_process(Pid::from_raw(child.pid() as i32).unwrap(), Signal::KILL).unwrap();
    frozen.release();
    assert!(!child.wait().success());
}
