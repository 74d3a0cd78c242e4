//! Real processes in every awkward state: zombies, kernel threads, hidden and denied ones, ones that exec or
//! end while they are read, ones with a hostile name, with 65,530 mappings, with every kind of memory.
#![allow(clippy::unwrap_used)]

mod programs;

use ebbtide_observe::process::kind::{Classifier, Hints, Kind, Verdict};
use ebbtide_observe::process::{Area, Memory, Processes, State};
use ebbtide_observe::{Bytes, Process, ReadError, Root};
use ebbtide_testkit::Child;
use ebbtide_testkit::child::{installed, is_root};
use std::os::unix::process::CommandExt;
use std::process::Command;

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    programs::play();
}

fn live() -> Root {
    Root::live().unwrap()
}

fn open(child: &Child) -> Process {
    Process::open(&live(), child.pid()).unwrap()
}

#[test]
fn a_zombie_has_a_name_and_no_memory() {
    let mut child = Child::start("idle", &[]);
    let process = open(&child);
    assert!(process.status().unwrap().vm.is_some());
    child.make_zombie();
    let status = process.status().unwrap();
    assert_eq!((status.state, status.vm, status.is_kernel_thread()), (State::Zombie, None, false));
    assert!(process.rollup().is_err() && process.mapping_count().unwrap_or(0) == 0);
    assert!(process.cmdline().unwrap_or_default().is_empty());
    let all = Processes::read(&live()).unwrap();
    assert_eq!(all.get(child.pid()).unwrap().memory, Memory::None);
    drop(child);
    assert!(matches!(process.status(), Err(ReadError::Vanished { .. })));
    assert!(matches!(process.rollup(), Err(ReadError::Vanished { .. })));
    assert!(matches!(process.exe(), Err(ReadError::Vanished { .. })));
    assert!(matches!(process.each_fd(|_, _| true), Err(ReadError::Vanished { .. })));
    assert!(matches!(process.each_area(|_| true), Err(ReadError::Vanished { .. })));
}

#[test]
fn kthreadd_is_the_kernels() {
    let Ok(process) = Process::open(&live(), 2) else {
        println!("skipped: no process 2 in this pid namespace");
        return;
    };
    let status = process.status().unwrap();
    if status.name.as_bytes() != b"kthreadd" {
        println!("skipped: process 2 is {}, not kthreadd: a pid namespace", status.name);
        return;
    }
    assert!(status.is_kernel_thread() && process.stat().unwrap().is_kernel_thread());
    assert_eq!(status.vm, None);
    let sample = *Processes::read(&live()).unwrap().get(2).unwrap();
    assert_eq!((sample.memory, sample.pss()), (Memory::None, Some(Bytes::ZERO)));
}

#[test]
fn a_hostile_name_is_read_as_it_is_and_shown_harmless() {
    let child = Child::start("hostile name", &[]);
    let process = open(&child);
    let expected = programs::HOSTILE_NAME.as_bytes();
    assert_eq!(process.status().unwrap().name.as_bytes(), expected);
    assert_eq!(process.stat().unwrap().name.as_bytes(), expected);
    assert_eq!(process.threads().unwrap()[0].name().unwrap().as_bytes(), expected);
    let all = Processes::read(&live()).unwrap();
    let sample = all.get(child.pid()).unwrap();
    assert_eq!(sample.name().as_bytes(), expected);
    assert_eq!(sample.name().to_string(), "a) R 1\\n\\x1b[31m");
    assert_eq!(sample.stat.ppid, std::process::id());
}

#[test]
fn a_process_that_execs_while_its_mappings_stream_by() {
    let mut child = Child::start("exec cat", &[]);
    let process = open(&child);
    let mut seen = 0;
    let read = process.each_area(|_| {
        seen += 1;
        if seen == 1 {
            child.tell("exec");
            // cat answers what it is told: by then the old memory is gone.
            assert_eq!(child.ask("@ready cat"), "cat");
        }
        true
    });
    assert!(matches!(read, Ok(()) | Err(ReadError::Vanished { .. })), "{read:?}");
    assert!(seen >= 1);
    assert_eq!(process.status().unwrap().name.as_bytes(), b"cat");
    assert!(process.rollup().unwrap().rss > Bytes::ZERO);
}

#[test]
fn a_process_that_ends_while_its_mappings_stream_by() {
    let mut child = Child::start("idle", &[]);
    let process = open(&child);
    let mut seen = 0;
    let read = process.each_mapping(|_| {
        seen += 1;
        if seen == 1 {
            child.make_zombie();
        }
        true
    });
    assert!(matches!(read, Ok(()) | Err(ReadError::Vanished { .. })), "{read:?}");
    assert!(seen >= 1);
}

#[test]
fn processes_that_come_and_go_do_not_disturb_the_others() {
    let mut children = Child::start("churn", &[]);
    children.tell("go");
    for _ in 0..30 {
        let all = Processes::read(&live()).unwrap();
        assert!(all.get(children.pid()).is_some_and(|sample| sample.pss().is_some()));
        assert!(all.get(std::process::id()).is_some());
    }
}

/// 65,530 mappings are some 6 MB of maps and 60 MB of smaps: read by a process of its own, whose peak tells.
#[test]
fn as_many_mappings_as_there_may_be() {
    let child = Child::start("mappings", &[]);
    let made: u64 = child.said().parse().unwrap();
    let reader = Child::start("read all mappings of", &[&child.pid().to_string()]);
    let [count, areas, peak] = numbers(reader.said());
    assert!(made > 10_000, "{made}");
    assert!(count > made && count == areas, "{made} made, {count} counted, {areas} in smaps");
    assert!(peak < 32 << 20, "peak {peak}");
}

fn numbers<const N: usize>(said: &str) -> [u64; N] {
    let numbers: Vec<u64> = said.split(' ').map(|word| word.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

#[test]
fn what_a_stranger_may_not_read_is_counted() {
    if !is_root() {
        println!("skipped: only root can become somebody else");
        return;
    }
    let idle = Child::start("idle", &[]);
    let mut command = Child::command("count processes", &[&idle.pid().to_string()]);
    let reader = Child::spawn(command.uid(programs::NOBODY).gid(programs::NOBODY));
    let [all, denied, has_rss, has_pss] = numbers(reader.said());
    assert!(all > denied && denied > 0, "{}", reader.said());
    assert_eq!((has_rss, has_pss), (1, 0), "the rough resident set is for everyone, PSS is not");
}

#[test]
fn hidden_processes_are_noticed() {
    if !is_root() || !installed("unshare") {
        println!("skipped: needs root and unshare");
        return;
    }
    let idle = Child::start("idle", &[]);
    // Not listed at all; listed, but closed.
    for (mode, hidden_at_least, unreadable_at_least) in [("invisible", 4, 0), ("noaccess", 0, 1)] {
        let reader = spawn_behind_hidepid(mode, &idle);
        if reader.said() == "no" {
            println!("skipped: this kernel mounts no /proc with hidepid={mode} here");
            return;
        }
        let [all, hidden, unreadable, found_idle] = numbers(reader.said());
        assert!(
            all >= 1 && hidden >= hidden_at_least && unreadable >= unreadable_at_least,
            "{}",
            reader.said()
        );
        assert_eq!(found_idle, 0, "{mode}");
    }
}

/// "count hidden" as nobody, in a mount namespace of its own whose /proc has `hidepid=mode`.
fn spawn_behind_hidepid(mode: &str, idle: &Child) -> Child {
    let player = Child::command("count hidden as nobody", &[&idle.pid().to_string()]);
    let script = "mount -t proc -o hidepid=$1 proc /proc || { echo '@ready no'; read line; exit; }
        shift; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", mode]);
    command.arg(player.get_program()).args(player.get_args());
    command.envs(player.get_envs().filter_map(|(key, value)| Some((key, value?))));
    Child::spawn(&mut command)
}

#[test]
fn every_kind_of_a_real_process() {
    let child = Child::start("three threads", &[]);
    let process = open(&child);
    let Some(hints) = hints_at_rest(&process) else {
        println!("skipped: where its threads are may not be asked here");
        return;
    };
    let threads = process.threads().unwrap().len();
    assert!(threads >= 4);
    assert_eq!(sure_stacks(&process, hints.clone()), threads - 1);
    let kinds = process.kinds(hints).unwrap();
    // Stacks for signal handlers, which Rust makes for every thread, are likely ones and untouched.
    assert!(kinds[&Kind::ThreadStack].mappings >= 3);
    assert_eq!(kinds[&Kind::ThreadStack].unsure, Bytes::ZERO);
    assert!(kinds[&Kind::MainStack].counters.rss > Bytes::ZERO);
    if cfg!(target_env = "gnu") {
        let arenas = kinds[&Kind::Arena];
        assert!(arenas.counters.rss >= Bytes::from_mib(3), "{arenas:?}");
    }
    let sum: Bytes = kinds.values().map(|total| total.counters.rss).sum();
    assert_eq!(sum, process.rollup().unwrap().rss);
    assert_eq!(process.environ("EBBTIDE_TEST_CHILD").unwrap().as_deref(), Some(&b"three threads"[..]));
}

/// The hints once all threads sleep, which no handshake can tell: they say they are ready while they run.
fn hints_at_rest(process: &Process) -> Option<Hints> {
    for _ in 0..5000 {
        let hints = process.hints().unwrap();
        if hints.complete {
            return Some(hints);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let denied = matches!(process.threads().unwrap()[0].syscall(), Err(ReadError::Denied { .. }));
    assert!(denied, "its threads never come to rest");
    None
}

fn sure_stacks(process: &Process, hints: Hints) -> usize {
    let mut stacks = 0;
    let mut tell = |verdict: Verdict, ()| {
        stacks += usize::from(verdict == Verdict { kind: Kind::ThreadStack, sure: true });
    };
    let mut classifier = Classifier::new(hints);
    let push = |area: &Area| {
        classifier.push(&area.mapping, area.flags, (), &mut tell);
        true
    };
    process.each_area(push).unwrap();
    classifier.finish(&mut tell);
    stacks
}
